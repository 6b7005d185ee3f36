//! JSON documents to typed columns.
//!
//! A document is read once: [`shred`] checks it and puts each value into a cell of its field. What the cells of
//! a field have in common is [`facts`]; facts of batches merge, and the column's type follows from them, which
//! is decided outside. [`build`] makes columns of the decided types of the cells. So a type that turns out
//! wider in the middle of a batch costs nothing, and no cell is ever converted twice. A large batch whose columns
//! are likely those of the batch before goes through all of that in [`blocks`].

pub mod blocks;
pub mod build;
pub mod facts;
pub mod shred;
pub mod token;
