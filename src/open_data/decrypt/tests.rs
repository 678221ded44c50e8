use cbc::cipher::BlockModeEncrypt;
use cbc::cipher::block_padding::Pkcs7;
use proptest::prelude::*;

use super::*;

const KEY: &str = "tiihtNczf5v6AKRyjwEUhQ==";
const IV: &str = "r7BXXKkLb8qrSNn05n0qiA==";

/// The sample that WeChat publishes with its example code.
const SAMPLE: &str = "CiyLU1Aw2KjvrjMdj8YKliAjtP4gsMZMQmRzooG2xrDcvSnxIMXFufNstNGTyaGS9uT5geRa0W4oTOb1WT7fJlAC+oNPdbB+3hVbJSRgv+4lGOETKUQz6OYStslQ142dNCuabNPGBzlooOmB231qMM85d2/fV6ChevvXvQP8Hkue1poOFtnEtpyxVLW1zAo6/1Xx1COxFvrc2d7UL/lmHInNlxuacJXwu0fjpXfz/YqYzBIBzD6WUfTIF9GRHpOn/Hz7saL8xz+W//FRAUid1OksQaQx4CMs8LOddcQhULW4ucetDf96JcR3g0gfRK4PC7E/r7Z6xNrXd2UIeorGj5Ef7b1pJAYB6Y5anaHqZ9J6nKEBvB4DnNLIVWSgARns/8wR2SiRS7MNACwTyrGvt9ts8p12PKFdlqYTopNHR1Vf7XjfhQlVsAJdNiKdYmYVoKlaRv85IfVunYzO0IKXsyl7JCUjCpoG20f0a04COwfneQAGGwd5oa+T8yO5hzuyDb/XcxxmK01EpqOyuxINew==";
const PLAINTEXT: &str = r#"{"openId":"oGZUI0egBJY1zhBYw2KhdUfwVJJE","nickName":"Band","gender":1,"language":"zh_CN","city":"Guangzhou","province":"Guangdong","country":"CN","avatarUrl":"http://wx.qlogo.cn/mmopen/vi_32/aSKcBBPpibyKNicHNTMM0qJVh8Kjgiak2AHWr8MHM4WgMEm7GFhsf8OYrySdbvAMvTsw3mo8ibKicsnfN5pRjl1p8HQ/0","unionId":"ocMvos6NjeKLIBqg5Mr9QjxrP1FA","watermark":{"timestamp":1477314187,"appid":"wx4f4bc4dec97d474b"}}"#;
const APP: &str = "wx4f4bc4dec97d474b";
const ANY_AGE: Freshness = Freshness { now: 2_000_000_000, max_age: None };

fn key(text: &str) -> SessionKey {
    SessionKey::parse(text).unwrap()
}

fn encrypt(plaintext: &[u8]) -> Encrypted {
    let iv = [7; BLOCK];
    let cipher = cbc::Encryptor::<Aes128>::new((&*key(KEY).bytes()).into(), (&iv).into());
    let mut data = plaintext.to_vec();
    data.resize(plaintext.len() + BLOCK, 0);
    let data = cipher.encrypt_padded::<Pkcs7>(&mut data, plaintext.len()).unwrap().to_vec();
    Encrypted { data, iv }
}

/// Encrypts text that has its padding already.
fn encrypt_as_is(padded: &[u8]) -> Encrypted {
    let iv = [7; BLOCK];
    let cipher = cbc::Encryptor::<Aes128>::new((&*key(KEY).bytes()).into(), (&iv).into());
    let mut data = padded.to_vec();
    cipher.encrypt_padded::<NoPadding>(&mut data, padded.len()).unwrap();
    Encrypted { data, iv }
}

fn decrypt(encrypted: &Encrypted, keys: &[&str], age: Freshness) -> Result<String, DecryptError> {
    let keys: Vec<_> = keys.iter().map(|text| key(text)).collect();
    let app_id = AppId::parse(APP).unwrap();
    encrypted.decrypt(&keys, &app_id, age).map(|text| text.to_string())
}

#[test]
fn the_published_sample_is_decrypted_to_the_byte_by_any_kept_key() {
    let encrypted = Encrypted::parse(SAMPLE, IV).unwrap();
    let (wrong, other) = ("HyVFkGl5F5OQWJZZaNzBBg==", "o0q0otL8aEzpcZL/FT9WsQ==");
    for keys in [&[KEY][..], &[wrong, KEY], &[wrong, other, KEY], &[KEY, wrong]] {
        assert_eq!(decrypt(&encrypted, keys, ANY_AGE).as_deref(), Ok(PLAINTEXT));
    }
    assert_eq!(decrypt(&encrypted, &[wrong, other], ANY_AGE), Err(DecryptError::NoKeyFits));
    let damaged = Encrypted::parse(&SAMPLE.replace('+', " "), IV).unwrap();
    assert_eq!(decrypt(&damaged, &[KEY], ANY_AGE).as_deref(), Ok(PLAINTEXT));
}

#[test]
fn what_no_key_can_decrypt_is_invalid_before_a_key_is_tried() {
    for (data, iv) in [
        ("", IV),
        ("AA==", IV),
        (&SAMPLE[..100], IV),
        ("%%%%", IV),
        (SAMPLE, ""),
        (SAMPLE, "AA=="),
        (SAMPLE, "r7BXXKkLb8qrSNn05n0qiPo5"),
        (SAMPLE, "?"),
    ] {
        let refused = Encrypted::parse(data, iv).err();
        assert!(matches!(refused, Some(DecryptError::Invalid(_))), "{data:.10} {iv}");
    }
}

#[test]
fn everything_wrong_with_a_plaintext_is_one_error() {
    let watermark = format!(r#""watermark":{{"timestamp":1,"appid":"{APP}"}}"#);
    let mut padded = format!("{{{watermark}}}").into_bytes();
    let room = BLOCK - padded.len() % BLOCK;
    let right = encrypt(&padded);
    assert!(decrypt(&right, &[KEY], ANY_AGE).is_ok());
    for filler in [0, 1, u8::try_from(room).unwrap() + 1, 17, 255] {
        let mut wrong = padded.clone();
        wrong.resize(padded.len() + room, filler);
        if usize::from(filler) != room && filler != 1 {
            let outcome = decrypt(&encrypt_as_is(&wrong), &[KEY], ANY_AGE);
            assert_eq!(outcome, Err(DecryptError::NoKeyFits), "padding of {filler}");
        }
    }
    // One byte of the padding is wrong.
    padded.resize(padded.len() + room, u8::try_from(room).unwrap());
    let at = padded.len() - room;
    padded[at] ^= 1;
    if room > 1 {
        assert_eq!(decrypt(&encrypt_as_is(&padded), &[KEY], ANY_AGE), Err(DecryptError::NoKeyFits));
    }
    for text in [
        "".as_bytes(),
        b"{}",
        b"[]",
        b"null",
        br#"{"watermark":null}"#,
        br#"{"watermark":{"appid":"wx4f4bc4dec97d474b"}}"#,
        br#"{"watermark":{"appid":7,"timestamp":1}}"#,
        br#"{"watermark":["wx4f4bc4dec97d474b",1]}"#,
        br#"[{"watermark":{"appid":"wx4f4bc4dec97d474b","timestamp":1}}]"#,
        b"\xff{\"watermark\":{\"appid\":\"wx4f4bc4dec97d474b\",\"timestamp\":1}}",
        b"{\"watermark\":{\"appid\":\"wx4f4bc4dec97d474b\",\"timestamp\":1},\"x\":\"\xff\"}",
        format!("{{{watermark}}} x").as_bytes(),
        format!("{{{watermark},{watermark}}}").as_bytes(),
        format!("{{{watermark}").as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(
            decrypt(&encrypt(text), &[KEY], ANY_AGE),
            Err(DecryptError::NoKeyFits),
            "{shown}"
        );
    }
}

#[test]
fn a_whole_plaintext_of_another_app_or_too_old_is_invalid() {
    let data = |app: &str, timestamp: u64| {
        encrypt(
            format!(r#"{{"watermark":{{"appid":"{app}","timestamp":{timestamp}}}}}"#).as_bytes(),
        )
    };
    let other = decrypt(&data("wx0", 1000), &[KEY], ANY_AGE);
    assert!(matches!(other, Err(DecryptError::Invalid(_))));
    let within = |now, max_age| {
        decrypt(&data(APP, 1000), &[KEY], Freshness { now, max_age: Some(max_age) }).is_ok()
    };
    assert!(within(1060, 60) && !within(1061, 60));
    assert!(within(940, 0) && !within(939, 0));
    assert!(within(1000, 0) && within(u64::MAX, u64::MAX));
}

/// A case of `tests/open_data/cases.py`.
#[derive(serde::Deserialize)]
struct Case {
    encrypted_data: String,
    iv: String,
    keys: Vec<String>,
    app_id: String,
    now: u64,
    max_age: Option<u64>,
    plaintext: Option<String>,
    error: Option<String>,
    raw_data: String,
    signature: String,
    is_signed: bool,
    signer: String,
    mac: String,
}

/// `tests/open_data/run` makes the cases.
#[test]
#[ignore = "needs the cases of tests/open_data/run"]
fn independent_implementations_agree() {
    let cases = std::fs::read_to_string(std::env::var("OPEN_DATA_CASES").unwrap()).unwrap();
    for line in cases.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let keys: Vec<_> = case.keys.iter().map(|text| key(text)).collect();
        let app_id = AppId::parse(&case.app_id).unwrap();
        let freshness = Freshness { now: case.now, max_age: case.max_age };
        let found = Encrypted::parse(&case.encrypted_data, &case.iv)
            .and_then(|encrypted| encrypted.decrypt(&keys, &app_id, freshness));
        let (plaintext, error) = match &found {
            Ok(plaintext) => (Some(plaintext.as_str()), None),
            Err(DecryptError::Invalid(_)) => (None, Some("invalid")),
            Err(DecryptError::NoKeyFits) => (None, Some("no key fits")),
        };
        assert_eq!(plaintext, case.plaintext.as_deref(), "{line}");
        assert_eq!(error, case.error.as_deref(), "{line}");
        let is_signed = crate::open_data::is_signed(&case.raw_data, &case.signature, &keys);
        assert_eq!(is_signed, case.is_signed, "{line}");
        assert_eq!(key(&case.signer).sign(case.raw_data.as_bytes()), case.mac, "{line}");
    }
    println!("{} cases", cases.lines().count());
}

proptest! {
    #[test]
    fn a_padding_is_right_exactly_if_pkcs7_says_so(mut block in any::<[u8; 16]>(), length in 0..20_u8) {
        for byte in block.iter_mut().rev().take(length.into()) {
            *byte = length;
        }
        let last = block[15];
        let expected = (1..=16).contains(&last)
            && block.iter().rev().take(last.into()).all(|byte| *byte == last);
        let (is_right, found) = padding(&block);
        prop_assert_eq!(bool::from(is_right), expected);
        prop_assert_eq!(found, if expected { last } else { 0 });
    }

    #[test]
    fn any_object_with_a_watermark_comes_back_to_the_byte(value in "[^\"\\\\\\x00-\\x1f]{0,80}") {
        let text = format!(r#"{{"watermark":{{"appid":"{APP}","timestamp":5}},"x":"{value}"}}"#);
        prop_assert_eq!(decrypt(&encrypt(text.as_bytes()), &[KEY], ANY_AGE).unwrap(), text);
    }
}
