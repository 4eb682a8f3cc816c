//! See `remora_fuzz::copy`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::copy(data));
