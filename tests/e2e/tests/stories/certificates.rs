//! Certificates: ordered from an authority, shown by the ingress, renewed, and what happens when the authority is away.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use rung_api::wire::certificates::{CertificateListing, CertificateReport, CertificateSource};
use rung_e2e::advice::{Advice, identifier};
use rung_e2e::authority::{Authority, Looks};
use rung_e2e::{Reserved, Rung, Start, TestApp, eventually, http, process};

pub const DOMAIN: &str = "shop.example.com";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A platform that serves HTTPS, and the port where.
fn platform() -> (Rung, u16) {
    let options = ["--https", "127.0.0.1:0", "--ingress", "hsts-s=600"].map(str::to_owned).to_vec();
    let rung = Rung::start_with(Start { options, ..Start::default() });
    let said = "and at https://127.0.0.1:";
    rung.wait_until_said(said);
    let output = rung.output();
    let (_, rest) = output.split_once(said).expect("it was just said");
    let port = rest.split(';').next().and_then(|port| port.parse().ok());
    (rung, port.unwrap_or_else(|| panic!("no port in {output}")))
}

pub fn shop() -> TestApp {
    let mut app = TestApp::new("shop", 1);
    app.sections.push(format!("domains = [{DOMAIN:?}]"));
    app
}

fn enable(rung: &Rung, authority: &Authority) {
    let (directory, trust) = (authority.directory_url(), authority.trust());
    let trust = trust.to_str().expect("UTF-8");
    let said =
        ["certificate", "enable", "--email", "ops@example.com", "--directory", &directory, "--trust", trust];
    rung.cli(&said).ends_with(1).mentions("--agree-to-terms");
    rung.cli(&[&said[..], &["--agree-to-terms"]].concat()).succeeds().mentions("are ordered for the domains");
}

fn listing(rung: &Rung) -> Result<CertificateListing, String> {
    listing_of(rung, DOMAIN)
}

fn listing_of(rung: &Rung, domain: &str) -> Result<CertificateListing, String> {
    let report: CertificateReport =
        serde_json::from_slice(&rung.api_get("/v1/certificates")?).map_err(|error| error.to_string())?;
    let found = report.certificates.iter().find(|listing| listing.domain == domain);
    found.cloned().ok_or_else(|| format!("{report:?}"))
}

fn page(https: u16, root: &Path) -> Result<String, String> {
    page_at(SocketAddr::from((HERE, https)), root)
}

fn serial(https: u16) -> String {
    serial_at(SocketAddr::from((HERE, https)))
}

/// What a client that trusts only `root` gets to see.
pub fn page_at(address: SocketAddr, root: &Path) -> Result<String, String> {
    let (ip, https) = (address.ip(), address.port());
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--noproxy", "*", "--max-time", "20", "--cacert"])
        .arg(root)
        .args(["--resolve", &format!("{DOMAIN}:{https}:{ip}")])
        .arg(format!("https://{DOMAIN}:{https}/"))
        .output()
        .expect("curl is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The serial number of the certificate that is shown.
pub fn serial_at(address: SocketAddr) -> String {
    shown_at(address, DOMAIN, "-serial")
}

/// A field of the certificate that is shown for this name.
fn shown_at(address: SocketAddr, domain: &str, field: &str) -> String {
    let shown = Command::new("sh")
        .args([
            "-c",
            "openssl s_client -connect $0 -servername $1 </dev/null 2>/dev/null | openssl x509 -noout $2",
        ])
        .args([&address.to_string(), domain, field])
        .output()
        .expect("openssl is installed");
    String::from_utf8_lossy(&shown.stdout).trim().to_owned()
}

#[test]
fn a_domain_gets_a_certificate_that_goes_on_while_its_authority_is_away() {
    let (rung, https) = platform();
    let authority = Authority::start(Looks { at: HERE, http: rung.http().port(), https });
    let root = authority.root();
    let app = shop();
    rung.deploy(app.directory()).succeeds();
    rung.wait_until_settled("shop", "web", 1);
    let listed = listing(&rung).expect("the app names it");
    assert_eq!((listed.source, listed.until), (CertificateSource::Nobody, None));
    let plain = || http::get(rung.http(), DOMAIN, "/").expect("it is served").status;
    assert_eq!(plain(), 200, "it is sent to HTTPS although it has no certificate");

    enable(&rung, &authority);
    let answer = eventually("a stranger who trusts the authority reaches the shop", || page(https, &root));
    assert!(answer.to_lowercase().contains("strict-transport-security: max-age=600"), "{answer}");
    rung.cli(&["certificate", "list"]).succeeds().mentions(DOMAIN).mentions("acme");
    rung.cli(&["events"]).succeeds().mentions("shop.example.com has a certificate until");
    assert_eq!(plain(), 308, "plain requests go on although there is a certificate");
    let first = serial(https);
    for file in ["store.db", "store.db-wal"] {
        let bytes = std::fs::read(rung.data().join(file)).unwrap_or_default();
        let found = bytes.windows(11).any(|window| window == b"PRIVATE KEY");
        assert!(!found, "a key lies open in {file}");
    }

    rung.cli(&["certificate", "renew", DOMAIN]).succeeds();
    eventually("the renewed certificate is shown", || {
        let shown = serial(https);
        if shown.is_empty() || shown == first { Err(shown) } else { Ok(()) }
    });
    let second = serial(https);

    authority.shut();
    rung.cli(&["certificate", "renew", DOMAIN]).succeeds();
    eventually("the failure is told", || listing(&rung)?.trouble.ok_or_else(|| "no trouble".to_owned()));
    rung.cli(&["doctor"]).mentions("can't be renewed").mentions("rung certificate renew shop.example.com");
    rung.cli(&["status", "--app", "shop"]).mentions("can't be renewed");
    // A new master key, an ingress that lost its files, and one that starts anew: all without the authority.
    rung.cli(&["secret", "rotate-key"]).succeeds();
    std::fs::remove_file(rung.data().join(format!("ingress/managed/{DOMAIN}.pem"))).expect("it was kept");
    let ingress = rung.ingress();
    process::kill_9(ingress.pid);
    process::wait_until_gone(ingress);
    eventually("the same certificate is shown", || {
        page(https, &root)?;
        let shown = serial(https);
        if shown == second { Ok(()) } else { Err(shown) }
    });

    authority.reopen();
    rung.cli(&["certificate", "renew", DOMAIN]).succeeds();
    eventually("the next one is there", || match (serial(https), listing(&rung)?.trouble) {
        (shown, None) if !shown.is_empty() && shown != second => Ok(()),
        instead => Err(format!("{instead:?}")),
    });
    rung.cli(&["certificate", "disable"]).succeeds();
    page(https, &root).expect("what was ordered goes on to its end");
    rung.cli(&["certificate", "renew", DOMAIN]).ends_with(1).mentions("rung certificate enable");
}

#[test]
fn a_certificate_is_renewed_when_its_authority_advises_to() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (rung, https) = platform();
    let now = Timestamp::now();
    let week = Advice::Window { start: now + 7 * 24 * HOUR, end: now + 8 * 24 * HOUR };
    let looks = Looks { at: HERE, http: rung.http().port(), https };
    let authority = Authority::start_that_advises(looks, week);
    let advisor = authority.advisor();
    enable(&rung, &authority);
    let deploy = |name: &str| {
        let mut app = TestApp::new(name, 1);
        app.sections.push(format!("domains = [\"{name}.example.com\"]"));
        rung.deploy(app.directory()).succeeds();
        app
    };
    let renewal = |name: &str, asked: usize| {
        eventually("it is known when the next one is ordered", || {
            let noted = advisor.noted();
            let listed = listing_of(&rung, &format!("{name}.example.com"))?;
            match (listed.until, listed.renewal, noted.asked.len() == asked) {
                (Some(until), Some(renewal), true) => Ok((until, renewal)),
                _ => Err(format!("{listed:?} after {noted:?}")),
            }
        })
    };

    // As openssl knows it.
    let shown = |domain: &str| {
        let field = |field| shown_at(SocketAddr::from((HERE, https)), domain, field);
        let serial = field("-serial").strip_prefix("serial=")?.to_owned();
        let key = field("-ext authorityKeyIdentifier");
        Some(identifier(&serial, key.split_whitespace().last()?))
    };

    let _in_a_week = deploy("week");
    eventually("the advice is taken", || {
        let (_, renewal) = renewal("week", 1);
        let in_window = now + 7 * 24 * HOUR <= renewal && renewal <= now + 8 * 24 * HOUR;
        if in_window { Ok(()) } else { Err(renewal.to_string()) }
    });

    let identified = eventually("it is shown", || shown("week.example.com").ok_or_else(String::new));
    assert_eq!(advisor.noted().asked, [identified], "advice was asked for on another one");

    advisor.say(Advice::Nonsense(r#"{"suggestedWindow":{"start":"soon","end":"later"}}"#));
    let _as_planned = deploy("nonsense");
    let (until, at) = renewal("nonsense", 2);
    // Pebble's certificates hold for five years.
    let two_thirds = (until.duration_since(at)).as_secs_f64() / until.duration_since(now).as_secs_f64();
    assert!((two_thirds - 1.0 / 3.0).abs() < 0.01, "nonsense changed what was planned: {at} of {until}");

    // As an authority does that has to revoke what it signed.
    advisor.say(Advice::Window { start: now - 2 * HOUR, end: now - HOUR });
    let _at_once = deploy("now");
    let noted = eventually("it is renewed at once", || match advisor.noted() {
        noted if noted.replaced.len() == 1 => Ok(noted),
        noted => Err(format!("{noted:?}")),
    });
    assert_eq!(noted.replaced[0], noted.asked[2], "the order does not say which one it replaces");
    let issued = "now.example.com has a certificate until";
    eventually("there are two", || match rung.cli(&["events"]).everything().matches(issued).count() {
        2 => Ok(()),
        count => Err(format!("{count} were issued")),
    });
    eventually("the new one is shown", || match shown("now.example.com") {
        Some(shown) if shown != noted.replaced[0] => Ok(()),
        shown => Err(format!("{shown:?}")),
    });
    let (_, renewal) = renewal("now", 3);
    assert!(
        renewal > now + 24 * HOUR,
        "the new one is renewed at {renewal}, as the old one was advised to be"
    );
}

#[test]
fn a_setting_that_the_ingress_does_not_know_is_refused_before_anything_starts() {
    let mut rung = Rung::start();
    rung.kill_9();
    let vain = |setting: &str| rung.up_in_vain(&["--ingress".to_owned(), setting.to_owned()]);
    vain("hsts=600").ends_with(2).mentions("there are").mentions("hsts-s").mentions("docs/ingress.md");
    vain("hsts-s=a year").ends_with(2).mentions("a year").mentions("write seconds");
    vain("data=/tmp").ends_with(2);
}

#[test]
fn where_port_80_is_closed_the_name_is_proved_by_tls() {
    let (rung, https) = platform();
    let nobody = Reserved::any();
    let authority = Authority::start(Looks { at: HERE, http: nobody.address().port(), https });
    let root = authority.root();
    let app = shop();
    rung.deploy(app.directory()).succeeds();
    enable(&rung, &authority);
    let why =
        eventually("the first order fails", || listing(&rung)?.trouble.ok_or_else(|| "none".to_owned()));
    assert!(
        why.contains("http-01") && why.contains("connection refused"),
        "it does not say what was seen: {why}"
    );
    rung.cli(&["status", "--app", "shop"]).mentions("has no certificate");
    rung.cli(&["certificate", "renew", DOMAIN]).succeeds();
    eventually("the certificate is shown", || page(https, &root));
    assert_eq!(listing(&rung).expect("it is there").trouble, None);
}

#[test]
fn a_certificate_by_file_stands_before_an_ordered_one_and_its_end_is_told() {
    let (rung, https) = platform();
    let app = shop();
    rung.deploy(app.directory()).succeeds();
    let directory = rung.data().join("ingress/certificates");
    let put = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "5",
        ])
        .args(["-subj", "/CN=shop", "-addext", "subjectAltName=DNS:shop.example.com"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(directory.join("shop.example.com.key"))
        .arg("-out")
        .arg(directory.join("shop.example.com.crt"))
        .output()
        .expect("openssl is installed");
    assert!(put.status.success(), "{put:?}");
    eventually("the file is in use", || page(https, &directory.join("shop.example.com.crt")));
    let listed = eventually("the server knows of it", || match listing(&rung)? {
        listed if listed.source == CertificateSource::File => Ok(listed),
        listed => Err(format!("{listed:?}")),
    });
    assert!(listed.until.is_some() && listed.renewal.is_none(), "{listed:?}");
    rung.cli(&["doctor"]).mentions("shop.example.com: the certificate by file ends in 4 days");
}
