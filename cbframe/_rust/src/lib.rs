//! What cbframe does for every byte and every document.

pub mod documents;
pub mod frames;
pub mod json;
#[cfg(feature = "python")]
mod python;
