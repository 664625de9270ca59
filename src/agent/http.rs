//! The listeners for HTTP, as configured.

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::net::TcpListener;

use super::StartError;
use crate::bundle::oidc::IssuerUrl;
use crate::config::Config;
use crate::http::{Health, Http, Https, Introspection, Oidc};
use crate::verify::tls::Tls;

/// What is bound; each with its address.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(super) plain: Option<(TcpListener, Http)>,
    pub(super) tls: Option<(TcpListener, Https)>,
}

impl Listeners {
    /// Binds what the configuration names. Introspection is there with sessions alone.
    pub(super) async fn bind(
        config: &Config,
        health: Health,
        introspection: Introspection,
        tls: &Tls,
    ) -> Result<Self, StartError> {
        let mut listeners = Self::default();
        let offered = config.sessions.enabled;
        if let Some(address) = config.http.address {
            let introspection = offered.then(|| introspection.clone());
            // It was checked when it was read.
            let issuer = config.authority.jwt_issuer.as_deref().and_then(|url| IssuerUrl::parse(url).ok());
            let oidc = issuer.map(|issuer| Oidc::new(issuer, tls.trust.clone()));
            listeners.plain = Some((bind(address).await?, Http { health, introspection, oidc }));
        }
        if let Some(address) = config.http.tls_address.filter(|_| offered) {
            let https = Https { introspection, tls: tls.clone() };
            listeners.tls = Some((bind(address).await?, https));
        }
        Ok(listeners)
    }

    /// The address without TLS.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.plain.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// The address with TLS.
    pub(super) fn tls_address(&self) -> Option<SocketAddr> {
        self.tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }
}

/// Probes are answered from these.
pub(super) fn health(readiness: crate::http::Readiness, registry: MetricsRegistry) -> Health {
    Health { readiness, registry: Arc::new(registry) }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Http { address, source })
}
