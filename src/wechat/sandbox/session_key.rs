//! What the back end does with a `session_key` at WeChat: check and reset it.

use serde_json::json;

use super::call::Call;
use super::errors::Failure;
use super::users::is_signature;
use super::{Response, Sandbox, json_response};

/// Longest openid, in bytes: they are remembered for the quota.
const LONGEST_OPENID: usize = 128;

impl Sandbox {
    /// auth.checkSessionKey: whether a signature was made with the user's current `session_key`.
    pub(super) fn check_session_key(&self, call: &Call) -> Result<Response, Failure> {
        let (openid, signature) = self.signed(call)?;
        let key = self.users.session_key(&call.app_id, &openid);
        // Here, WeChat does not distinguish a missing key from a wrong one.
        match key.filter(|key| is_signature(key, &signature)) {
            Some(_) => Ok(json_response(&json!({ "errcode": 0, "errmsg": "ok" }))),
            None => Err(87009.into()),
        }
    }

    /// auth.resetUserSessionKey: a new `session_key`, which expires when the old one would have.
    pub(super) fn reset_session_key(&self, call: &Call) -> Result<Response, Failure> {
        let (openid, signature) = self.signed(call)?;
        let key = self.users.reset(&call.app_id, &openid, &signature)?;
        Ok(json_response(&json!({
            "errcode": 0,
            "errmsg": "ok",
            "openid": openid,
            "session_key": key.expose(),
        })))
    }

    /// The openid and the signature of a call.
    fn signed(&self, call: &Call) -> Result<(String, String), i64> {
        let (openid, signature) = (call.parameter("openid"), call.parameter("signature"));
        if !(1..=LONGEST_OPENID).contains(&openid.len()) || signature.is_empty() {
            return Err(40097);
        }
        if call.parameter("sig_method") != "hmac_sha256" {
            return Err(87008);
        }
        self.quotas.count_for_user(call.path, &openid)?;
        Ok((openid, signature))
    }
}
