//! Routes, and what is done on the way.

use std::time::Duration;

use super::*;

#[test]
fn a_route_says_what_is_done_on_the_way() {
    use crate::route::{Affinity, Auth, Compression, Destination, HeaderChange, Origins, WithCredentials};
    let file = accepted(&web(r#"
        [secrets]
        required = ["API_KEYS"]

        [pages]
        maintenance = "<h1>Back soon</h1>"
        404 = "<h1>Lost?</h1>"

        [[routes]]
        path = "/api/*"
        service = "web"
        host = "shop.localhost"
        methods = ["get", "POST"]
        headers = { X-Version = "2", X-Beta = true }
        strip = true
        request_headers = { X-Tier = "gold", Cookie = false }
        response_headers = { Server = false }
        response_timeout = "5m"
        max_body = "10MB"
        max_head = "8KB"
        sticky = true
        compress = true
        overload = { queue = 20 }
        allow = ["10.0.0.0/8", "::1"]
        deny = ["10.6.6.6"]
        auth = { api_key = "API_KEYS", header = "X-Token" }
        cors = { origins = ["https://App.example.com"], credentials = true, max_age = "1h" }
        limit = { per_address = "10/s", per_key = "1000/h", burst = 50 }

        [[routes]]
        path = "/old/*"
        redirect = "https://example.com/*"
        status = 301
        "#));
    let [route, redirect] = file.routes.as_slice() else { panic!("two routes: {:?}", file.routes) };
    assert_eq!(route.when.methods.iter().collect::<Vec<_>>(), ["GET", "POST"]);
    assert_eq!(route.when.headers["x-version"].as_deref(), Some("2"));
    assert_eq!(route.when.headers["x-beta"], None);
    let policy = &route.policy;
    assert_eq!(policy.rewrite.as_deref(), Some("/*"));
    assert_eq!(policy.request_headers["Cookie"], HeaderChange::Remove);
    assert_eq!(policy.request_headers["X-Tier"], HeaderChange::Set("gold".into()));
    assert_eq!((policy.max_body_bytes, policy.max_head_bytes), (Some(10_000_000), Some(8000)));
    assert_eq!((policy.affinity, policy.compression), (Affinity::Cookie, Compression::On));
    assert!(policy.addresses.admits("10.1.1.1".parse().unwrap()));
    assert!(!policy.addresses.admits("10.6.6.6".parse().unwrap()));
    let overload = policy.overload.unwrap();
    assert_eq!((overload.max, overload.queue, overload.wait), (10_000, 20, Duration::from_secs(1)));
    let Some(Auth::ApiKey(keys)) = &policy.auth else { panic!("{:?}", policy.auth) };
    assert_eq!((keys.secret.as_str(), keys.header.as_deref()), ("API_KEYS", Some("x-token")));
    let cors = policy.cors.as_ref().unwrap();
    assert_eq!(cors.origins, Origins::These(["https://app.example.com".to_owned()].into()));
    assert_eq!(cors.credentials, WithCredentials::Allowed);
    let limit = policy.limit.as_ref().unwrap();
    assert_eq!(limit.per_key.unwrap().per, Duration::from_secs(3600));
    assert_eq!(limit.per_address.unwrap().burst, 50);
    let Destination::Redirect(to) = &redirect.to else { panic!("{redirect:?}") };
    assert_eq!((to.to.as_str(), to.status), ("https://example.com/*", 301));
    assert_eq!(file.pages.by_status[&404], "<h1>Lost?</h1>");
    let text = serde_json::to_string(&file).unwrap();
    assert!(text.contains(r#""path":"/old/*","redirect":{"#), "{text}");
    assert_eq!(serde_json::from_str::<AppFile>(&text).unwrap(), file, "the file survives the store");
}

#[test]
fn routes_that_contradict_themselves_are_refused_with_the_way_out() {
    for (route, message) in [
        ("", "route has no `service`"),
        ("service = \"web\"\nredirect = \"/x\"", "two places to go"),
        ("service = \"web\"\nstatus = 301", "`status` is a redirect's"),
        ("redirect = \"//evil.example/*\"", "a host without a scheme"),
        ("redirect = \"elsewhere\"", "neither a path nor an address"),
        ("redirect = \"/new/*\"\nstatus = 304", "304 is not a redirect"),
        ("redirect = \"/new/*\"\nsticky = true", "`sticky` is about an application"),
        ("service = \"web\"\noverload = { queue = -1 }", "`routes.overload.queue` = -1 is out of bounds"),
        ("redirect = \"/new/*\"\noverload = {}", "`overload` is about an application"),
        ("redirect = \"/new/*\"\ncompress = true", "`compress` is about an application"),
        ("service = \"web\"\nstrip = true\nrewrite = \"/v2/*\"", "two ways to rewrite"),
        ("service = \"web\"\nrewrite = \"/v2\"", "must both end with /*"),
        ("service = \"web\"\nhost = \"other.example.com\"", "not one of the app's domains"),
        ("service = \"web\"\nrequest_headers = { Host = \"x\" }", "set by Rung itself"),
        ("service = \"web\"\nresponse_headers = { X-A = \"a\\nb\" }", "line breaks"),
        ("service = \"web\"\nallow = [\"10.0.0.0/40\"]", "more than 32 bits"),
        ("service = \"web\"\nauth = {}", "does not say how to ask"),
        ("service = \"web\"\nauth = { api_key = \"A\", basic = \"B\" }", "two ways to ask"),
        ("service = \"web\"\nauth = { jwt = \"https://id.example/keys\" }", "`jwt` without `issuer`"),
        ("service = \"web\"\nauth = { jwt = \"keys.json\", issuer = \"x\" }", "does not begin with https"),
        ("service = \"web\"\nauth = { api_key = \"NOWHERE\" }", "secret `NOWHERE` is not required"),
        ("service = \"web\"\nauth = { basic = \"ada:lovelace\" }", "`basic` is not"),
        ("service = \"web\"\ncors = { origins = [\"*\"], credentials = true }", "any page could act"),
        ("service = \"web\"\ncors = { origins = [\"https://a.example/x\"] }", "more than an origin"),
        ("service = \"web\"\nlimit = { burst = 3 }", "limits nothing"),
        ("service = \"web\"\nlimit = { per_address = \"10\" }", "is not a rate"),
        ("service = \"web\"\nlimit = { per_key = \"10/s\" }", "nobody is asked for one"),
        ("redirect = \"/new/*\"\nstrip = true", "`strip` is about an application"),
        ("service = \"web\"\nmethods = []", "`routes.methods` is an empty list"),
        ("service = \"web\"\nallow = []", "`routes.allow` is an empty list"),
        ("service = \"web\"\ncors = { origins = [] }", "`routes.cors.origins` is an empty list"),
        ("service = \"web\"\nrequest_headers = { X_Forwarded_For = \"::1\" }", "set by Rung itself"),
        ("service = \"web\"\nrequest_headers = { X-Rung-Caller = \"root\" }", "set by Rung itself"),
        ("service = \"web\"\nauth = { api_key = \"A\", header = \"Host\" }", "other things than a key"),
    ] {
        let messages = messages(&web(&format!("[[routes]]\npath = \"/a/*\"\n{route}")));
        assert!(messages.iter().any(|found| found.contains(message)), "{route}: {messages:?}");
        assert!(
            !messages.iter().any(|found| found.contains("lovelace")),
            "it repeats a password: {messages:?}"
        );
    }
    let h2c = web(
        "protocol = \"h2c\"\n[[routes]]\npath = \"/*\"\nservice = \"web\"\ncompress = true\noverload = {}",
    );
    let found = messages(&h2c);
    assert!(
        found.iter().any(|found| found.contains("answers of h2c services pass as they come")),
        "{found:?}"
    );
    assert!(found.iter().any(|found| found.contains("`overload` can't judge by them")), "{found:?}");
    let messages = messages(&web("[pages]\n418 = \"teapot\""));
    assert!(messages.iter().any(|found| found.contains("`418` is not a page")), "{messages:?}");
}
