//! Certify over the control channel: `io.linkerd.proxy.identity.Identity/Certify`. Contract 2.3.

use super::{CertificateRequest, Certify, CertifyFault, IssuedCertificate};
use crate::{
    control::{self, ClientAuth, ControlAddr, ControlMetrics, Resolve},
    tls::TrustBundle,
};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse, identity_client::IdentityClient};
use remora_core::time::UnixTime;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A projected token is about 1 KiB; more than this is not one.
const MAX_TOKEN: u64 = 64 * 1024;

/// A chain of nine certificates is far less.
const MAX_ANSWER: usize = 256 * 1024;

/// The identity service, asked over a connection made for each attempt: one every few hours is not worth keeping.
pub struct GrpcCertify<R> {
    /// Where identity is and who must answer.
    pub addr: ControlAddr,
    /// Service account token, read again at each attempt because the kubelet replaces it.
    pub token_file: PathBuf,
    /// Whom to believe while there are no credentials.
    pub bundle: Arc<TrustBundle>,
    /// Finds the addresses.
    pub resolver: R,
    /// Where attempts are counted.
    pub metrics: ControlMetrics,
}

impl<R: Resolve + Clone> Certify for GrpcCertify<R> {
    async fn certify(&self, request: CertificateRequest) -> Result<IssuedCertificate, CertifyFault> {
        let token = read_token(&self.token_file)
            .map_err(|source| CertifyFault::Token { path: self.token_file.clone(), source })?;
        let auth = ClientAuth::Bootstrap(request.current, self.bundle.clone());
        let channel = control::channel(&self.addr, auth, self.resolver.clone(), &self.metrics)?;
        let mut client = IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let request = CertifyRequest {
            identity: request.identity.as_str().to_owned(),
            token,
            certificate_signing_request: request.csr,
        };
        let answer = client
            .certify(request)
            .await
            .map_err(|status| CertifyFault::Refused { code: status.code(), message: reason(&status) })?;
        read_answer(answer.into_inner())
    }
}

/// tonic's own failures say "transport error" and keep the reason among their sources.
fn reason(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn read_token(path: &Path) -> io::Result<Vec<u8>> {
    let mut token = Vec::new();
    File::open(path)?.take(MAX_TOKEN + 1).read_to_end(&mut token)?;
    match token.len() as u64 {
        0 => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
        size if size > MAX_TOKEN => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the file is larger than 64 KiB"))
        }
        _ => Ok(token),
    }
}

fn read_answer(answer: CertifyResponse) -> Result<IssuedCertificate, CertifyFault> {
    if answer.leaf_certificate.is_empty() {
        return Err(CertifyFault::Incomplete("leaf certificate"));
    }
    let until = answer.valid_until.ok_or(CertifyFault::Incomplete("end of validity"))?;
    // Before 1970 is long past, whatever it is exactly.
    let secs = u64::try_from(until.seconds).unwrap_or(0);
    let nanos = Duration::from_nanos(u64::try_from(until.nanos).unwrap_or(0));
    Ok(IssuedCertificate {
        leaf: answer.leaf_certificate,
        intermediates: answer.intermediate_certificates,
        valid_until: UnixTime::from_secs(secs) + nanos,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_token(&path).map_err(|fault| fault.to_string())
        };
        assert_eq!(read(b"ey.J.x"), Ok(b"ey.J.x".to_vec()));
        assert_eq!(read(b""), Err("the file is empty".to_owned()));
        assert_eq!(read(&vec![b'x'; 65537]), Err("the file is larger than 64 KiB".to_owned()));
        assert_eq!(read(&vec![b'x'; 65536]).map(|token| token.len()), Ok(65536));
        assert_eq!(read_token(&dir.path().join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_answer_must_be_whole() {
        let whole = || CertifyResponse {
            leaf_certificate: vec![1],
            intermediate_certificates: vec![vec![2]],
            valid_until: Some(prost_types::Timestamp { seconds: 5, nanos: 7 }),
        };
        let issued = read_answer(whole()).unwrap();
        assert_eq!(issued.valid_until.0, Duration::new(5, 7));
        assert_eq!((issued.leaf, issued.intermediates), (vec![1], vec![vec![2]]));
        let refused = |answer| read_answer(answer).unwrap_err().to_string();
        let answer = CertifyResponse { leaf_certificate: Vec::new(), ..whole() };
        assert_eq!(refused(answer), "identity's answer has no leaf certificate");
        let answer = CertifyResponse { valid_until: None, ..whole() };
        assert_eq!(refused(answer), "identity's answer has no end of validity");
        let past = prost_types::Timestamp { seconds: -5, nanos: -7 };
        let answer = CertifyResponse { valid_until: Some(past), ..whole() };
        assert_eq!(read_answer(answer).unwrap().valid_until, UnixTime::from_secs(0));
    }
}
