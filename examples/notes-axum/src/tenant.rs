//! The workspace that a request is about: the header `x-workspace`, or the host's name.
//!
//! Anybody can send either. A service with users takes the workspace from the authenticated user, in this same place.

use std::borrow::Cow;

use axum::extract::FromRequestParts;
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use pool_core::WorkspaceId;

use crate::app::App;
use crate::refusal::Refusal;

/// The header that names a workspace. It goes before the host's name.
pub const HEADER: &str = "x-workspace";

/// The workspace that a request names. It need not exist: what acquires a connection finds that out.
pub struct Tenant(pub WorkspaceId);

impl<L> FromRequestParts<App<L>> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App<L>) -> Result<Self, Refusal> {
        let name = match by_header(parts)? {
            Some(name) => Some(Cow::Borrowed(name)),
            None => by_host(parts, &app.domain).map(Cow::Owned),
        };
        let no_name = || {
            let ways = format!("the header {HEADER}, or the host <workspace>.{}", app.domain);
            Refusal::bad_request(format!("the request names no workspace: use {ways}"))
        };
        Ok(Self(WorkspaceId::new(name.ok_or_else(no_name)?)?))
    }
}

fn by_header(parts: &Parts) -> Result<Option<&str>, Refusal> {
    let mut values = parts.headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // A proxy in front of the service may have checked the other one.
    if values.next().is_some() {
        return Err(Refusal::bad_request(format!("{HEADER} must be given once")));
    }
    let name = std::str::from_utf8(value.as_bytes());
    name.map(Some).map_err(|_| Refusal::bad_request(format!("{HEADER} must be UTF-8")))
}

/// `acme` of `acme.notes.example:3000`. Hosts' names have no case.
fn by_host(parts: &Parts, domain: &str) -> Option<String> {
    let of_header = || parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = parts.uri.authority().map(Authority::as_str).or_else(of_header)?;
    let host = host.split_once(':').map_or(host, |(name, _port)| name).to_ascii_lowercase();
    let label = host.strip_suffix(&domain.to_ascii_lowercase())?.strip_suffix('.')?;
    (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
}
