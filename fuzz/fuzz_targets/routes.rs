//! See `remora_fuzz::routes`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::routes(data));
