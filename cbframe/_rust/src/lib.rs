//! What cbframe does for every byte and every document.

pub mod documents;
pub mod frames;
pub mod json;
#[cfg(feature = "python")]
mod python;

/// What some work gives; or the message of a panic in it, which is a fault of this crate.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(|text| &text[..]);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_string()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_an_error() {
        assert_eq!(super::caught(|| 5), Ok(5));
        let row = std::hint::black_box(7);
        assert_eq!(super::caught(|| panic!("row {row}")), Err::<(), _>("row 7".to_string()));
        let found = super::caught(|| [1, 2, 3][row]);
        assert_eq!(found, Err("index out of bounds: the len is 3 but the index is 7".to_string()));
    }
}
