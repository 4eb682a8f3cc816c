//! See `remora_fuzz::redirect`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::redirect(data));
