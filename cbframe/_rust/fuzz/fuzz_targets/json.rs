#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cbframe_core_fuzz::json::json(data));
