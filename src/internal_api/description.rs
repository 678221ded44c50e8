//! The description of the API: `OpenAPI` 3.1, generated from the types of bodies, the list of
//! endpoints and the list of errors.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::endpoint::Endpoint;
use super::error::ApiError;
use super::messages::{
    AccessTokenResponse, DecryptRequest, DecryptResponse, ErrorResponse, PhoneNumberRequest,
    PhoneNumberResponse, RenewRequest, UserRequest, ValidResponse, VerifyRequest,
};
use crate::message::own_response::OwnResponse;

/// The response with the description.
pub fn response() -> OwnResponse {
    static RESPONSE: LazyLock<OwnResponse> =
        LazyLock::new(|| OwnResponse::json(200, &description()));
    RESPONSE.clone()
}

/// What is described by hand.
struct Described {
    id: &'static str,
    summary: &'static str,
    text: &'static str,
}

impl Endpoint {
    fn described(self) -> Described {
        let (id, summary, text) = match self {
            Self::Decrypt => (
                "decrypt",
                "Decrypt open data",
                "Tries every kept session key of the user. The data is not authenticated (CBC \
                 without MAC): get phone numbers by /v1/phone-number.",
            ),
            Self::Verify => (
                "verify",
                "Verify signed raw data",
                "Whether the signature was made with any kept session key of the user.",
            ),
            Self::CheckKey => (
                "check",
                "Check a session key",
                "Whether WeChat accepts the newest session key of the user.",
            ),
            Self::ResetKey => (
                "reset",
                "Replace a session key",
                "The old key is invalid at once. Never repeated: after a lost answer the key may \
                 be replaced.",
            ),
            Self::PhoneNumber => (
                "phoneNumber",
                "Get a phone number",
                "A code is sent to WeChat once, together with the openid.",
            ),
            Self::AccessToken => (
                "accessToken",
                "Get the access token of an app",
                "Who has it can call all of WeChat's API: prefer /v1/wechat.",
            ),
            Self::RenewAccessToken => (
                "renewAccessToken",
                "Replace an access token that WeChat has rejected",
                "Renews only if it is still the current one, at most every ten seconds for an app.",
            ),
            Self::WeChat => (
                "wechat",
                "Call WeChat's API",
                "Adds the access token. The path goes on with the path at WeChat, slashes \
                 included; it must be in wechat_paths. The response is WeChat's own.",
            ),
            Self::Description => ("description", "This description", "Needs no token."),
            Self::Jwks => (
                "jwks",
                "The public keys that verify signed identities",
                "A JWK Set (RFC 7517). Needs no token. Fetch it again when a token has an unknown \
                 kid.",
            ),
        };
        Described { id, summary, text }
    }

    fn methods(self) -> &'static [&'static str] {
        match self {
            Self::WeChat => &["get", "post"],
            Self::AccessToken | Self::Description | Self::Jwks => &["get"],
            _ => &["post"],
        }
    }

    fn request(self) -> Option<String> {
        Some(match self {
            Self::Decrypt => DecryptRequest::name().into_owned(),
            Self::Verify => VerifyRequest::name().into_owned(),
            Self::CheckKey | Self::ResetKey => UserRequest::name().into_owned(),
            Self::PhoneNumber => PhoneNumberRequest::name().into_owned(),
            Self::RenewAccessToken => RenewRequest::name().into_owned(),
            Self::AccessToken | Self::WeChat | Self::Description | Self::Jwks => return None,
        })
    }

    /// The successful response: status and description.
    fn success(self) -> (&'static str, Value) {
        let of =
            |name: String| json!({ "application/json": { "schema": schema_reference(&name) } });
        let (status, content) = match self {
            Self::Decrypt => ("200", of(DecryptResponse::name().into_owned())),
            Self::Verify | Self::CheckKey => ("200", of(ValidResponse::name().into_owned())),
            Self::ResetKey => return ("204", json!({ "description": "replaced" })),
            Self::PhoneNumber => ("200", of(PhoneNumberResponse::name().into_owned())),
            Self::AccessToken | Self::RenewAccessToken => {
                ("200", of(AccessTokenResponse::name().into_owned()))
            }
            Self::WeChat => {
                let response = json!({ "description": "WeChat's own response", "content": { "*/*": { "schema": {} } } });
                return ("2XX", response);
            }
            Self::Description | Self::Jwks => {
                ("200", json!({ "application/json": { "schema": { "type": "object" } } }))
            }
        };
        (status, json!({ "description": "success", "content": content }))
    }
}

fn description() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for endpoint in Endpoint::ALL {
        for method in endpoint.methods() {
            let item = paths.entry(endpoint.path()).or_default();
            item.insert((*method).to_owned(), operation(endpoint, method));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "wxgate internal API",
            "description": "For services behind the gateway, never for phones. Take the openid \
                            from the header X-OpenId, never from a phone's body.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a token of [internal]",
                },
            },
        },
        "security": [{ "token": [] }],
    })
}

fn operation(endpoint: Endpoint, method: &str) -> Value {
    let Described { id, summary, text } = endpoint.described();
    let mut operation = Map::new();
    let id = match endpoint {
        Endpoint::WeChat => format!("{id}_{method}"),
        _ => id.to_owned(),
    };
    operation.insert("operationId".to_owned(), id.into());
    operation.insert("summary".to_owned(), summary.into());
    operation.insert("description".to_owned(), text.into());
    if !endpoint.needs_token() {
        operation.insert("security".to_owned(), json!([]));
    }
    let id_schema = json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$" });
    let parameters = match endpoint {
        Endpoint::AccessToken => json!([{
            "name": "app_id", "in": "query", "schema": id_schema,
            "description": "The app; the default app if it is missing.",
        }]),
        Endpoint::WeChat => json!([
            { "name": "app_id", "in": "path", "required": true, "schema": id_schema },
            {
                "name": "path", "in": "path", "required": true,
                "schema": {
                    "type": "string",
                    "pattern": "^[A-Za-z0-9_-]+$",
                    "examples": ["wxa/msg_sec_check"],
                },
            },
        ]),
        _ => json!([]),
    };
    operation.insert("parameters".to_owned(), parameters);
    if let Some(name) = endpoint.request() {
        let content = json!({ "application/json": { "schema": schema_reference(&name) } });
        operation.insert("requestBody".to_owned(), json!({ "required": true, "content": content }));
    } else if endpoint == Endpoint::WeChat && method == "post" {
        let content = json!({
            "application/json": { "schema": {} },
            "multipart/form-data": { "schema": { "type": "object" } },
        });
        operation.insert("requestBody".to_owned(), json!({ "content": content }));
    }
    operation.insert("responses".to_owned(), responses(endpoint));
    operation.into()
}

/// The successful response, and the errors by status.
fn responses(endpoint: Endpoint) -> Value {
    let (status, success) = endpoint.success();
    let mut responses = Map::from_iter([(status.to_owned(), success)]);
    let mut by_status: BTreeMap<u16, Vec<&ApiError>> = BTreeMap::new();
    for error in ApiError::ALL.iter().filter(|error| endpoint.can_fail_with(error)) {
        by_status.entry(error.status()).or_default().push(error);
    }
    for (status, errors) in by_status {
        let words: Vec<_> = errors.iter().map(|error| error.error()).collect();
        let examples: Map<_, _> = errors.iter().map(|error| example(error)).collect();
        let response = json!({
            "description": words.join(" or "),
            "headers": {
                "X-Wxgate-Error": {
                    "description": "the kind of the error",
                    "schema": { "type": "string", "enum": words },
                },
                "X-Request-Id": { "schema": { "type": "string" } },
            },
            "content": {
                "application/json": {
                    "schema": schema_reference(&ErrorResponse::name()),
                    "examples": examples,
                },
            },
        });
        responses.insert(status.to_string(), response);
    }
    responses.into()
}

fn example(error: &ApiError) -> (String, Value) {
    let value = json!({
        "error": error.error(),
        "message": error.message(),
        "action": error.action(),
        "request_id": "0f0e0d0c0b0a09080706050403020100",
    });
    (error.error().to_owned(), json!({ "value": value }))
}

fn schema_reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn schemas() -> Value {
    fn one<T: ToSchema + PartialSchema>() -> (String, Value) {
        (T::name().into_owned(), serde_json::to_value(T::schema()).unwrap_or_default())
    }

    Map::from_iter([
        one::<DecryptRequest>(),
        one::<VerifyRequest>(),
        one::<UserRequest>(),
        one::<PhoneNumberRequest>(),
        one::<RenewRequest>(),
        one::<DecryptResponse>(),
        one::<ValidResponse>(),
        one::<PhoneNumberResponse>(),
        one::<AccessTokenResponse>(),
        one::<ErrorResponse>(),
    ])
    .into()
}
