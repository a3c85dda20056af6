//! Tokens that somebody else has signed (JSON Web Tokens, RFC 7519): whether to believe one.
//!
//! The algorithm is the key's, never the token's word alone, and there is no way without a signature. What a token says
//! is read only after its signature was found good.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use rung_model::route::JwtAuth;
use serde::Deserialize;

/// Clocks of servers differ by so much.
const LEEWAY: Duration = Duration::from_secs(60);
/// Larger ones do not fit into the headers of many servers.
const TOKEN_MAX: usize = 16 * 1024;

/// The keys of an issuer (RFC 7517).
#[derive(Debug, Default)]
pub(crate) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// `None`: any that goes with it.
    algorithm: Option<String>,
    material: Material,
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa { .. } => "Rsa",
            Self::P256(_) => "P256",
            Self::P384(_) => "P384",
            Self::Ed25519(_) => "Ed25519",
        })
    }
}

#[derive(Debug, Deserialize)]
struct WrittenSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct WrittenKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Keys that are not understood are left out: an issuer may have others beside. `None`: it is no set of keys, or
    /// has none that can be used.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let written: WrittenSet = serde_json::from_slice(text).ok()?;
        let keys: Vec<Key> = written.keys.into_iter().filter_map(read_key).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }
}

fn read_key(value: serde_json::Value) -> Option<Key> {
    let written: WrittenKey = serde_json::from_value(value).ok()?;
    if written.usage.is_some_and(|usage| usage != "sig") {
        return None;
    }
    let bytes = |text: Option<&String>| URL_SAFE_NO_PAD.decode(text?).ok();
    let point = |size: usize| {
        let (x, y) = (bytes(written.x.as_ref())?, bytes(written.y.as_ref())?);
        (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), &y].concat())
    };
    let material = match (written.kty.as_str(), written.crv.as_deref()) {
        ("RSA", _) => {
            // As ring wants them: without leading zeros.
            let plain = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
            Material::Rsa { n: plain(bytes(written.n.as_ref())?), e: plain(bytes(written.e.as_ref())?) }
        }
        ("EC", Some("P-256")) => Material::P256(point(32)?),
        ("EC", Some("P-384")) => Material::P384(point(48)?),
        ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(written.x.as_ref())?),
        _ => return None,
    };
    Some(Key { id: written.kid, algorithm: written.alg, material })
}

impl Key {
    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        if self.algorithm.as_ref().is_some_and(|own| own != algorithm) {
            return false;
        }
        let with = |known: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(known, key).verify(signed, signature).is_ok()
        };
        match (&self.material, algorithm) {
            (Material::Rsa { n, e }, _) => rsa(algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }),
            (Material::P256(key), "ES256") => with(&signature::ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), "ES384") => with(&signature::ECDSA_P384_SHA384_FIXED, key),
            (Material::Ed25519(key), "EdDSA" | "Ed25519") => with(&signature::ED25519, key),
            _ => false,
        }
    }
}

fn rsa(algorithm: &str) -> Option<&'static signature::RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It is none, is not signed by a known key, is for others, or its time is over or has not come.
    Invalid,
    /// It names a key that is not known: the issuer may have a new one.
    UnknownKey,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// What must be understood; nothing is.
    crit: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: Option<String>,
    iss: Option<String>,
    aud: Option<Audience>,
    exp: f64,
    nbf: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Many(many) => many.iter().any(|one| one == name),
        }
    }
}

/// Whom a token is about.
pub(crate) fn subject(
    token: &[u8],
    keys: &KeySet,
    asked: &JwtAuth,
    now: SystemTime,
) -> Result<String, Doubt> {
    let token = std::str::from_utf8(token).map_err(|_| Doubt::Invalid)?;
    let (signed, signature) =
        token.rsplit_once('.').filter(|_| token.len() <= TOKEN_MAX).ok_or(Doubt::Invalid)?;
    let (header, payload) = signed.split_once('.').ok_or(Doubt::Invalid)?;
    let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Doubt::Invalid);
    let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| Doubt::Invalid)?;
    if header.crit.is_some() {
        return Err(Doubt::Invalid);
    }
    let signature = decoded(signature)?;
    let mut candidates = keys
        .0
        .iter()
        .filter(|key| header.kid.is_none() || key.id.is_none() || key.id == header.kid)
        .peekable();
    if candidates.peek().is_none() {
        return Err(Doubt::UnknownKey);
    }
    if !candidates.any(|key| key.verifies(&header.alg, signed.as_bytes(), &signature)) {
        return Err(Doubt::Invalid);
    }
    let claims: Claims = serde_json::from_slice(&decoded(payload)?).map_err(|_| Doubt::Invalid)?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = LEEWAY.as_secs_f64();
    let in_time = now < claims.exp + leeway && claims.nbf.is_none_or(|nbf| now > nbf - leeway);
    let for_us = asked.audience.as_ref().is_none_or(|name| claims.aud.is_some_and(|aud| aud.has(name)));
    if !in_time || !for_us || claims.iss.as_deref() != Some(asked.issuer.as_str()) {
        return Err(Doubt::Invalid);
    }
    claims.sub.ok_or(Doubt::Invalid)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    use super::*;

    fn encoded(value: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(value)
    }

    fn asked() -> JwtAuth {
        JwtAuth {
            jwks: "https://id.example/keys".into(),
            issuer: "https://id.example".into(),
            audience: Some("shop".into()),
        }
    }

    struct Issuer {
        pair: Ed25519KeyPair,
    }

    impl Issuer {
        fn new() -> Self {
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
            Self { pair: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap() }
        }

        fn keys(&self) -> KeySet {
            let x = encoded(self.pair.public_key());
            let unknown = r#"{"kty":"oct","k":"c2VjcmV0"}"#;
            let own = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"k1","use":"sig","x":"{x}"}}"#);
            KeySet::parse(format!(r#"{{"keys":[{unknown},{own}]}}"#).as_bytes()).expect("a set of keys")
        }

        fn token(&self, header: &str, claims: &str) -> String {
            let signed = format!("{}.{}", encoded(header), encoded(claims));
            let signature = encoded(self.pair.sign(signed.as_bytes()));
            format!("{signed}.{signature}")
        }
    }

    const HEADER: &str = r#"{"alg":"EdDSA","kid":"k1"}"#;
    const CLAIMS: &str = r#"{"sub":"ada","iss":"https://id.example","aud":["shop","x"],"exp":2000}"#;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_good_token_says_whom_it_is_about() {
        let issuer = Issuer::new();
        let token = issuer.token(HEADER, CLAIMS);
        assert_eq!(subject(token.as_bytes(), &issuer.keys(), &asked(), at(1000)), Ok("ada".into()));
        let nobody_asked = JwtAuth { audience: None, ..asked() };
        assert_eq!(subject(token.as_bytes(), &issuer.keys(), &nobody_asked, at(2059)), Ok("ada".into()));
    }

    #[test]
    fn whatever_is_wrong_with_a_token_it_is_not_believed() {
        let issuer = Issuer::new();
        let good = issuer.token(HEADER, CLAIMS);
        let claims = |claims: &str| issuer.token(HEADER, claims);
        let none = format!("{}.{}.", encoded(r#"{"alg":"none"}"#), encoded(CLAIMS));
        let other = Issuer::new().token(HEADER, CLAIMS);
        let parts: Vec<&str> = good.split('.').collect();
        let changed = format!("{}.{}.{}", parts[0], encoded(CLAIMS.replace("ada", "eve")), parts[2]);
        for (what, token) in [
            ("nothing", String::new()),
            ("no token", "a.b.c".into()),
            ("no signature", none),
            ("another's signature", other),
            ("a changed claim", changed),
            ("another algorithm", issuer.token(r#"{"alg":"HS256","kid":"k1"}"#, CLAIMS)),
            ("what must be understood", issuer.token(r#"{"alg":"EdDSA","kid":"k1","crit":["b64"]}"#, CLAIMS)),
            ("another issuer", claims(&CLAIMS.replace("id.example", "evil.example"))),
            ("another audience", claims(&CLAIMS.replace("shop", "cart"))),
            ("no end", claims(&CLAIMS.replace(r#","exp":2000"#, ""))),
            ("a time that is over", claims(&CLAIMS.replace("2000", "900"))),
            ("a time to come", claims(&CLAIMS.replace("2000", "2000,\"nbf\":1100"))),
            ("nobody", claims(&CLAIMS.replace("sub", "bus"))),
        ] {
            let found = subject(token.as_bytes(), &issuer.keys(), &asked(), at(1000));
            assert_eq!(found, Err(Doubt::Invalid), "a token with {what} was believed");
        }
        let renewed = issuer.token(r#"{"alg":"EdDSA","kid":"k2"}"#, CLAIMS);
        assert_eq!(subject(renewed.as_bytes(), &issuer.keys(), &asked(), at(1000)), Err(Doubt::UnknownKey));
    }

    #[test]
    fn curves_are_told_apart() {
        let random = SystemRandom::new();
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = (encoded(&point[1..33]), encoded(&point[33..]));
        let set = format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}]}}"#);
        let keys = KeySet::parse(set.as_bytes()).unwrap();
        let signed = format!("{}.{}", encoded(r#"{"alg":"ES256"}"#), encoded(CLAIMS));
        let token = format!("{signed}.{}", encoded(pair.sign(&random, signed.as_bytes()).unwrap()));
        assert_eq!(subject(token.as_bytes(), &keys, &asked(), at(1000)), Ok("ada".into()));
        assert!(KeySet::parse(br#"{"keys":[{"kty":"oct","k":"YQ"}]}"#).is_none(), "a shared key was taken");
    }
}
