//! What the internal API needs of a configuration.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::PolicyError;
use crate::clock::Clock;
use crate::config::{ApiPath, Caller, Config, InternalSection, TlsSection};
use crate::listener::tls::{Alpn, TicketKeys, Tls};
use crate::telemetry::metrics::Metrics;
use crate::wechat::WeChat;
use crate::wechat::access_token::AccessTokens;

/// A caller, and the digest of its token.
pub struct KnownCaller {
    pub digest: [u8; 32],
    pub caller: Arc<Caller>,
}

impl From<&Caller> for KnownCaller {
    fn from(caller: &Caller) -> Self {
        let digest = Sha256::digest(caller.token.expose()).into();
        Self { digest, caller: Arc::new(caller.clone()) }
    }
}

/// The state of the internal API for one configuration.
pub struct InternalPolicy {
    /// The services that may call.
    pub callers: Vec<KnownCaller>,
    /// Paths of WeChat's API that may be called through the gateway.
    pub wechat_paths: Vec<ApiPath>,
    /// Whether session keys are kept.
    pub has_open_data: bool,
    pub tls: Option<Tls>,
    pub wechat: Arc<WeChat>,
    pub access_tokens: Arc<AccessTokens>,
}

impl InternalPolicy {
    pub(super) fn new(
        config: &Config,
        section: &InternalSection,
        tls: Option<Tls>,
        wechat: Arc<WeChat>,
        access_tokens: Arc<AccessTokens>,
    ) -> Arc<Self> {
        Arc::new(Self {
            callers: section.callers.iter().map(KnownCaller::from).collect(),
            wechat_paths: section.wechat_paths.clone(),
            has_open_data: config.open_data.enabled,
            tls,
            wechat,
            access_tokens,
        })
    }

    /// # Errors
    /// When the TLS configuration cannot be built.
    pub(super) fn tls(
        section: &TlsSection,
        clock: &Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Tls, PolicyError> {
        // TLS sessions of the public listeners are not resumed here.
        let tls = TicketKeys::new(clock.clone())
            .and_then(|tickets| Tls::new(section, Arc::new(tickets), metrics.clone(), Alpn::Http1));
        tls.map_err(PolicyError::InternalTls)
    }
}
