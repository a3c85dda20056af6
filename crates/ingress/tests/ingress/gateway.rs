//! Who may come in, how often, and what a browser is told about pages of other origins.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rung_model::route::{
    AddressRule, ApiKeyAuth, Auth, BasicAuth, Cors, JwtAuth, Origins, Rate, RateLimits, RoutePolicy,
    Verifier, WithCredentials,
};
use rung_model::{Route, RouteDocument, SecretName};

use crate::application::Application;
use crate::client::Client;
use crate::routes::{ask, shop_with, to_web};
use crate::stage::Stage;

/// As the server would hand it out, with these lines in the secret.
fn guarded(app: &Application, rules: Vec<Route>, known: &[(&str, &str)]) -> RouteDocument {
    let mut document = shop_with(app, rules);
    let secret = SecretName::new("KEYS").unwrap();
    let salt = Verifier::salt(&document.app, &secret, 3);
    let verifier = |(name, shown): &(&str, &str)| {
        let digest = digest(&SHA256, format!("{salt}{shown}").as_bytes());
        let digest = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Verifier { name: (*name).to_owned(), digest }
    };
    document.secrets.insert(secret.clone(), 3);
    document.verifiers.insert(secret, known.iter().map(verifier).collect());
    document
}

fn with_key(header: Option<&str>) -> RoutePolicy {
    let secret = SecretName::new("KEYS").unwrap();
    let auth = Auth::ApiKey(ApiKeyAuth { secret, header: header.map(str::to_owned) });
    RoutePolicy { auth: Some(auth), ..RoutePolicy::default() }
}

fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop.localhost\r\n{headers}\r\n")
}

#[test]
fn without_a_known_key_nobody_reaches_the_application() {
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let rules = vec![to_web("/api/*", with_key(None)), to_web("/*", RoutePolicy::default())];
    let stage = Stage::start(vec![guarded(&app, rules, &[("acme", "k-123")])]);
    for headers in
        ["", "X-API-Key: k-124\r\n", "Authorization: Bearer \r\n", "Authorization: Basic k-123\r\n"]
    {
        let answer = ask(&stage, &request("/api/x", headers));
        assert_eq!((answer.status, answer.header("Rung-Error")), (401, Some("unauthorized")), "{headers:?}");
        assert_eq!(answer.header("WWW-Authenticate"), Some("Bearer"), "{headers:?}");
    }
    assert!(app.seen().is_empty(), "a request without a key reached the application");
    for headers in [
        "X-API-Key: k-123\r\nX-Rung-Caller: root\r\nX_Rung_Caller: root\r\nX-Rung_caller: root\r\n",
        "authorization: bearer k-123\r\n",
    ] {
        assert_eq!(ask(&stage, &request("/api/x", headers)).text(), "in", "{headers:?}");
    }
    for seen in app.seen() {
        assert_eq!(seen.header("X-Rung-Caller"), Some("acme"), "{}", seen.head);
        assert!(!seen.head.contains("k-123") && !seen.head.contains("root"), "{}", seen.head);
    }
    assert_eq!(ask(&stage, &request("/", "")).text(), "in", "a route beside asked for a key");
}

#[test]
fn no_spelling_of_a_path_goes_round_the_gate() {
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let rules = vec![to_web("/api/*", with_key(None)), to_web("/*", RoutePolicy::default())];
    let stage = Stage::start(vec![guarded(&app, rules, &[("acme", "k-123")])]);
    for path in ["//api/x", "/./api/x", "/a/../api/x", "/%61pi/x", "/api", "/a/%2e%2e/api/x", "/api/x/.."] {
        assert_eq!(ask(&stage, &request(path, "")).status, 401, "{path} went round the gate");
    }
    for path in ["/a/..%2fapi/x", "/%2Fapi/x", "/api%2Fx", "/a/..%5capi/x", "/a/..\\api/x"] {
        assert_eq!(ask(&stage, &request(path, "")).status, 400, "{path} can be read in two ways");
    }
    assert!(app.seen().is_empty(), "a request went round the gate");
    assert_eq!(ask(&stage, &request("/packages/@scope%2fname", "")).text(), "in");
}

#[test]
fn a_browser_is_asked_for_a_password() {
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let secret = SecretName::new("KEYS").unwrap();
    let auth = Some(Auth::Basic(BasicAuth { secret, realm: "staff only".into() }));
    let rules = vec![to_web("/*", RoutePolicy { auth, ..RoutePolicy::default() })];
    let stage = Stage::start(vec![guarded(&app, rules, &[("ada", "ada:love:lace")])]);
    let refused = ask(&stage, &request("/", ""));
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("WWW-Authenticate"), Some("Basic realm=\"staff only\", charset=\"UTF-8\""));
    let with = |pair: &str| {
        ask(&stage, &request("/", &format!("Authorization: Basic {}\r\n", STANDARD.encode(pair))))
    };
    assert_eq!(with("ada:lovelace").status, 401);
    assert_eq!(with("eve:love:lace").status, 401);
    assert_eq!(with("ada:love:lace").text(), "in");
    let seen = app.seen();
    assert_eq!(seen[0].header("Authorization"), None, "the password was passed on");
    assert_eq!(seen[0].header("X-Rung-Caller"), Some("ada"));
}

#[test]
fn addresses_are_the_client_s_and_not_what_it_says() {
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let addresses = AddressRule {
        allow: vec!["203.0.113.0/24".parse().unwrap()],
        deny: vec!["203.0.113.66".parse().unwrap()],
    };
    let rules = || vec![to_web("/*", RoutePolicy { addresses: addresses.clone(), ..RoutePolicy::default() })];
    let forwarded = |chain: &str| request("/", &format!("X-Forwarded-For: {chain}\r\n"));
    let alone = Stage::start(vec![shop_with(&app, rules())]);
    let answer = ask(&alone, &forwarded("203.0.113.5"));
    assert_eq!(
        (answer.status, answer.header("Rung-Error")),
        (403, Some("forbidden")),
        "its word was believed"
    );
    let behind =
        Stage::with_arguments(vec![shop_with(&app, rules())], &["--trust", "127.0.0.0/8,10.0.0.0/8"]);
    for (chain, status) in [
        ("203.0.113.5", 200),
        ("203.0.113.5, 10.0.0.1", 200),
        ("203.0.113.66", 403),
        ("203.0.113.5, 198.51.100.1", 403),
        ("203.0.113.5, nonsense", 403),
    ] {
        assert_eq!(ask(&behind, &forwarded(chain)).status, status, "{chain}");
    }
}

fn cors(origins: Origins, credentials: WithCredentials) -> RoutePolicy {
    let cors = Cors {
        origins,
        methods: ["GET", "PUT"].map(str::to_owned).into(),
        headers: [].into(),
        expose: ["x-total".to_owned()].into(),
        credentials,
        max_age: Duration::from_secs(600),
    };
    RoutePolicy { cors: Some(cors), ..with_key(None) }
}

#[test]
fn a_page_of_a_known_origin_may_and_others_may_not() {
    let app = Application::start("a-1", |connection| {
        while connection.request().is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 2\r\n\r\nin";
            if connection.write(answer).is_err() {
                return;
            }
        }
    });
    let known = Origins::These(["https://app.example.com".to_owned()].into());
    let rules = vec![to_web("/*", cors(known, WithCredentials::Allowed))];
    let stage = Stage::start(vec![guarded(&app, rules, &[("acme", "k-123")])]);
    let asking = |origin: &str| {
        let head = "OPTIONS / HTTP/1.1\r\nHost: shop.localhost\r\nAccess-Control-Request-Method: PUT\r\n";
        ask(&stage, &format!("{head}Origin: {origin}\r\n\r\n"))
    };
    let answer = asking("https://app.example.com");
    assert_eq!(answer.status, 204, "a preflight shows no key, and none is asked for: {answer:?}");
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://app.example.com"));
    assert_eq!(answer.header("Access-Control-Allow-Methods"), Some("GET, PUT"));
    assert_eq!(answer.header("Access-Control-Max-Age"), Some("600"));
    assert_eq!(answer.header("Vary"), Some("Origin"));
    let answer = asking("https://evil.example.com");
    assert_eq!((answer.status, answer.header("Access-Control-Allow-Origin")), (204, None));
    assert!(app.seen().is_empty(), "a preflight reached the application");
    let answer = ask(&stage, &request("/", "Origin: https://app.example.com\r\nX-API-Key: k-123\r\n"));
    assert_eq!(answer.text(), "in");
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://app.example.com"));
    assert_eq!(answer.header("Access-Control-Allow-Credentials"), Some("true"));
    assert_eq!(answer.header("Access-Control-Expose-Headers"), Some("x-total"));
    let refused = ask(&stage, &request("/", "Origin: https://app.example.com\r\n"));
    assert_eq!(refused.status, 401);
    assert!(refused.header("Access-Control-Allow-Origin").is_some(), "the page can't read why: {refused:?}");
}

fn limited(per_address: Option<Rate>, per_key: Option<Rate>) -> RoutePolicy {
    RoutePolicy { limit: Some(RateLimits { per_address, per_key, total: None }), ..RoutePolicy::default() }
}

/// A bucket that does not fill while a story is told.
fn of(burst: u32) -> Option<Rate> {
    Some(Rate { requests: 1, per: Duration::from_secs(3600), burst })
}

#[test]
fn who_comes_too_often_is_told_when_to_come_back() {
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let document = shop_with(&app, vec![to_web("/*", limited(of(3), None))]);
    let stage = Stage::with_arguments(vec![document.clone()], &["--trust", "127.0.0.1"]);
    let from = |address: &str| ask(&stage, &request("/", &format!("X-Forwarded-For: {address}\r\n")));
    for left in ["r=2", "r=1", "r=0"] {
        let answer = from("192.0.2.1");
        assert_eq!(answer.status, 200);
        let said = answer.header("RateLimit").expect("what is left is said");
        assert!(said.starts_with("\"address\";") && said.contains(left), "{said}");
        assert_eq!(answer.header("RateLimit-Policy"), Some("\"address\";q=1;w=3600"));
    }
    let refused = from("192.0.2.1");
    assert_eq!((refused.status, refused.header("Rung-Error")), (429, Some("rate_limited")));
    let wait: u64 = refused.header("Retry-After").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&wait), "it may come again in {wait} s");
    assert_eq!(from("192.0.2.2").status, 200, "one client's requests were counted for another");
    let of_one_network =
        ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"].map(|ip| from(ip).status);
    assert_eq!(of_one_network, [200, 200, 200, 429], "a /64 is one client");
    // What is counted outlives a change of the routes.
    let generation = stage.server.publish(vec![document]);
    stage.server.await_acknowledged(generation);
    assert_eq!(from("192.0.2.1").status, 429, "new routes forgot who came too often");
    assert_eq!(app.seen().len(), 7);
}

#[test]
fn each_key_has_a_share_of_its_own() {
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let policy = RoutePolicy { auth: with_key(Some("x-key")).auth, ..limited(None, of(1)) };
    let known = [("acme", "k-1"), ("bolt", "k-2")];
    let stage = Stage::start(vec![guarded(&app, vec![to_web("/*", policy)], &known)]);
    let mut client = Client::connect(stage.http);
    let statuses: Vec<u16> = ["k-1", "k-1", "k-2", "k-3"]
        .into_iter()
        .map(|key| {
            client.send(request("/", &format!("X-Key: {key}\r\n")));
            client.answer().expect("the connection was kept").status
        })
        .collect();
    assert_eq!(statuses, [200, 429, 200, 401]);
}

/// Signs as an issuer does: `kid` and the claims, by a key of its own.
fn signed(pair: &Ed25519KeyPair, kid: &str, claims: &str) -> String {
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let text = format!("{}.{}", encoded(&format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#)), encoded(claims));
    let signature = URL_SAFE_NO_PAD.encode(pair.sign(text.as_bytes()));
    format!("{text}.{signature}")
}

fn published(pairs: &[(&str, &Ed25519KeyPair)]) -> Vec<u8> {
    let key = |(kid, pair): &(&str, &Ed25519KeyPair)| {
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{x}"}}"#)
    };
    let keys: Vec<String> = pairs.iter().map(key).collect();
    format!(r#"{{"keys":[{}]}}"#, keys.join(",")).into_bytes()
}

#[test]
fn tokens_of_an_issuer_are_believed_and_its_keys_are_followed() {
    let pair = || {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()
    };
    let (first, second) = (pair(), pair());
    let both = published(&[("k1", &first), ("k2", &second)]);
    let keys = Arc::new(Mutex::new(published(&[("k1", &first)])));
    let serving = keys.clone();
    let issuer = Application::answering("id-1", move |_| serving.lock().unwrap().clone());
    let app = Application::answering("a-1", |_| b"in".to_vec());
    let auth = Auth::Jwt(JwtAuth {
        jwks: format!("http://{}/keys", issuer.address),
        issuer: "https://id.example".into(),
        audience: Some("shop".into()),
    });
    let rules = vec![to_web("/*", RoutePolicy { auth: Some(auth), ..RoutePolicy::default() })];
    let stage = Stage::start(vec![shop_with(&app, rules)]);
    let claims = r#"{"sub":"ada","iss":"https://id.example","aud":"shop","exp":32503680000}"#;
    let with = |token: &str| ask(&stage, &request("/", &format!("Authorization: Bearer {token}\r\n")));
    let good = signed(&first, "k1", claims);
    let answer = loop {
        // Its keys are fetched beside the requests.
        let answer = with(&good);
        if answer.status != 503 {
            break answer;
        }
        assert_eq!(answer.header("Rung-Error"), Some("issuer_unknown"));
    };
    assert_eq!(answer.text(), "in", "{answer:?}");
    let seen = app.seen();
    assert_eq!(seen[0].header("X-Rung-Caller"), Some("ada"));
    assert!(seen[0].header("Authorization").is_some(), "the application can't read the token");
    let forged = with(&signed(&second, "k1", claims));
    assert_eq!((forged.status, forged.header("Rung-Error")), (401, Some("unauthorized")));
    assert_eq!(forged.header("WWW-Authenticate"), Some("Bearer error=\"invalid_token\""));
    assert_eq!(with(&signed(&first, "k1", &claims.replace("shop", "cart"))).status, 401, "it is for others");
    assert_eq!(ask(&stage, &request("/", "")).header("WWW-Authenticate"), Some("Bearer"));
    let before = app.seen().len();
    let other = signed(&second, "k1", &claims.replace("ada", "root"));
    let two = format!("Authorization: Bearer {good}\r\nauthorization: Bearer {other}\r\n");
    assert_eq!(
        ask(&stage, &request("/", &two)).status,
        401,
        "of two tokens the application may read the other"
    );
    assert_eq!(app.seen().len(), before);

    // The issuer changes its keys: a token with the new one makes the ingress ask.
    *keys.lock().unwrap() = both;
    let renewed = signed(&second, "k2", claims);
    let patience = Instant::now() + Duration::from_secs(60);
    while with(&renewed).status != 200 {
        assert!(Instant::now() < patience, "the issuer's new key was never fetched");
        std::thread::yield_now();
    }
    issuer.close();
    assert_eq!(with(&good).text(), "in", "without the issuer its keys are not believed any more");
}
