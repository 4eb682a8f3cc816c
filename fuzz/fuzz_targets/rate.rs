//! See `remora_fuzz::rate`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::rate(data));
