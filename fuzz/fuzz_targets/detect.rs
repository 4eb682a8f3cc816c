//! See `remora_fuzz::detect`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::detect(data));
