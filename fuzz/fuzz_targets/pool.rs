//! See `remora_fuzz::pool`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::pool(data));
