//! What must hold of the core's parsers, whatever comes: each function panics where it does not.

pub mod frames;
pub mod json;
pub mod values;
