//! See `remora_fuzz::strategy`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::strategy(data));
