//! See `remora_fuzz::identity`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::identity(data));
