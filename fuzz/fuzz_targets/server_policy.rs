//! See `remora_fuzz::server_policy`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| remora_fuzz::server_policy(data));
