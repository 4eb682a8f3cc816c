//! See `remora_fuzz::profile`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::profile(data));
