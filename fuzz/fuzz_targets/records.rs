//! See `remora_fuzz::records`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::records(data));
