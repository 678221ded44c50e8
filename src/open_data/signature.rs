//! The signature of raw data: `sha1(rawData + session_key)`, the key as its base64 text.

use sha1::{Digest, Sha1};
use subtle::{Choice, ConstantTimeEq};

use crate::identity::session_key::{SessionKey, hex};

/// Whether the signature of `raw_data` was made with one of the keys. `raw_data` is the text from
/// the phone, byte for byte; `signature` is 40 hexadecimal digits. All keys are tried, and the
/// comparison takes the same time for every signature.
pub fn is_signed(raw_data: &str, signature: &str, keys: &[SessionKey]) -> bool {
    let signature = signature.to_ascii_lowercase();
    let is_by = |key: &SessionKey| {
        let mut hash = Sha1::new_with_prefix(raw_data);
        hash.update(key.expose());
        hex(&hash.finalize()).as_bytes().ct_eq(signature.as_bytes())
    };
    keys.iter().fold(Choice::from(0), |found, key| found | is_by(key)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that WeChat publishes.
    #[test]
    fn a_signature_by_any_kept_key_is_valid() {
        let raw = r#"{"nickName":"Band","gender":1,"language":"zh_CN","city":"Guangzhou","province":"Guangdong","country":"CN","avatarUrl":"http://wx.qlogo.cn/mmopen/vi_32/1vZvI39NWFQ9XM4LtQpFrQJ1xlgZxx3w7bQxKARol6503Iuswjjn6nIGBiaycAjAtpujxyzYsrztuuICqIM5ibXQ/0"}"#;
        let signature = "75e81ceda165f4ffa64f4068af58c64b8f54b88c";
        let key = |text| SessionKey::parse(text).unwrap();
        let right = key("HyVFkGl5F5OQWJZZaNzBBg==");
        let wrong = key("tiihtNczf5v6AKRyjwEUhQ==");
        assert!(is_signed(raw, signature, std::slice::from_ref(&right)));
        assert!(is_signed(raw, &signature.to_uppercase(), &[wrong.clone(), right.clone()]));
        assert!(!is_signed(raw, signature, &[wrong]));
        assert!(!is_signed(raw, signature, &[]));
        assert!(!is_signed(raw, &signature[..39], std::slice::from_ref(&right)));
        assert!(!is_signed(&raw.replace("Band", "band"), signature, &[right]));
    }
}
