#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbframe_core_fuzz::frames::leb128(data));
