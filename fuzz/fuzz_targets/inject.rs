//! See `remora_fuzz::inject`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::inject(data));
