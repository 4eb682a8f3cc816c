//! A request as routing and policy see it, without a copy.

use super::headers;
use http::{HeaderValue, Request, header};
use remora_core::route::RequestView;

/// What routing and policy see of a request.
pub struct View<'a, B>(pub &'a Request<B>);

impl<B> RequestView for View<'_, B> {
    fn method(&self) -> &str {
        self.0.method().as_str()
    }

    fn authority(&self) -> &str {
        if let Some(authority) = self.0.uri().authority() {
            return authority.as_str();
        }
        let host = headers::values(self.0.headers(), &header::HOST).next();
        host.and_then(|host| host.to_str().ok()).unwrap_or("")
    }

    fn path(&self) -> &str {
        self.0.uri().path()
    }

    fn query(&self) -> Option<&str> {
        self.0.uri().query()
    }

    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.headers().get_all(name).iter().map(HeaderValue::as_bytes)
    }
}
