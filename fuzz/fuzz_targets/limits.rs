//! See `remora_fuzz::limits`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::limits(data));
