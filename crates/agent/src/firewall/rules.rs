//! What the kernel is told about containers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use rung_model::AppName;

use super::neighbours::{Ends, Neighbours, Subnet};
use super::nft::{Owner, elements, nothing};
use crate::ledger::UIDS;

/// The user of each app on this machine.
pub type UsersOfApps = BTreeMap<AppName, u32>;

/// Both tables, whole: what was there goes in the same transaction.
pub fn rules(of: &Owner, seen: &Neighbours, users: &UsersOfApps) -> String {
    let mut text = names(of).iter().map(|table| nothing(table)).collect::<String>();
    for (table, body) in names(of).iter().zip([routed(seen, users), bridged(seen)]) {
        let _ = write!(text, "table {table} {{\n  {}\n{body}}}\n", of.comment());
    }
    text
}

/// `inet` sees what is routed, and what processes of this machine send; `bridge` what goes from one container to the next one.
pub fn names(of: &Owner) -> [String; 2] {
    ["inet", "bridge"].map(|family| format!("{family} {}_containers", of.name))
}

/// Judged by addresses. A refusal is a reset, which a client understands at once.
///
/// Root is the proxy and the health check. What apps send is looked at whole, whoever else on the machine wants something of
/// them only when it connects: their answers are not connections, and what is under way is not asked of conntrack, which
/// costs every packet of the machine something. To a container that nobody has told of yet no app gets.
fn routed(seen: &Neighbours, users: &UsersOfApps) -> String {
    let apps = || seen.apps.iter().enumerate();
    let own4 =
        apps().flat_map(|(at, (_, ends))| ends.v4.iter().map(move |it| format!("{it} : goto of_{at}")));
    let own6 =
        apps().flat_map(|(at, (_, ends))| ends.v6.iter().map(move |it| format!("{it} : goto of_{at}")));
    let all = || seen.apps.values();
    let subnets = |is_v4: bool| {
        let of_kind = move |it: &&Subnet| matches!(it.base, IpAddr::V4(_)) == is_v4;
        elements(seen.subnets.iter().filter(of_kind).map(ToString::to_string))
    };
    let mut chains = String::new();
    for (at, (app, ends)) in apps() {
        let _ = writeln!(chains, "  chain of_{at} {{");
        if let Some(app) = app {
            let user = users.get(app).map(|uid| format!("    meta skuid {uid} accept\n"));
            let v4 = one_of("ip saddr", ends.v4.iter());
            let v6 = one_of("ip6 saddr", ends.v6.iter());
            let _ = write!(chains, "{}{v4}{v6}", user.unwrap_or_default());
        }
        chains += "    goto refused\n  }\n";
    }
    format!(
        "  map apps4 {{ type ipv4_addr : verdict; {own4} }}
  map apps6 {{ type ipv6_addr : verdict; {own6} }}
  set callers4 {{ type ipv4_addr; {callers4} }}
  set callers6 {{ type ipv6_addr; {callers6} }}
  set others4 {{ type ipv4_addr; {others4} }}
  set others6 {{ type ipv6_addr; {others6} }}
  set networks4 {{ type ipv4_addr; flags interval; auto-merge; {networks4} }}
  set networks6 {{ type ipv6_addr; flags interval; auto-merge; {networks6} }}
  chain refused {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
{chains}  chain to_apps {{
    ip daddr vmap @apps4
    ip6 daddr vmap @apps6
  }}
  chain from_app {{
    ip daddr vmap @apps4
    ip6 daddr vmap @apps6
    ip daddr @others4 accept
    ip6 daddr @others6 accept
    ip daddr @networks4 goto refused
    ip6 daddr @networks6 goto refused
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oif \"lo\" accept
    tcp flags & (syn | ack) != syn accept
    meta skuid 0 accept
    meta skuid {first}-{last} goto from_app
    meta l4proto tcp goto to_apps
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ip saddr @callers4 goto from_app
    ip6 saddr @callers6 goto from_app
    tcp flags & (syn | ack) == syn goto to_apps
  }}
",
        own4 = elements(own4),
        own6 = elements(own6),
        callers4 = elements(all().flat_map(|ends| &ends.v4).map(ToString::to_string)),
        callers6 = elements(all().flat_map(|ends| &ends.v6).map(ToString::to_string)),
        others4 = elements(seen.others.v4.iter().map(ToString::to_string)),
        others6 = elements(seen.others.v6.iter().map(ToString::to_string)),
        networks4 = subnets(true),
        networks6 = subnets(false),
        first = UIDS.start(),
        last = UIDS.end(),
    )
}

/// Judged by network cards, whatever is said over them, so that neither a kind of address nor a kind of packet is forgotten;
/// and without `br_netfilter`, which would show what is bridged to the firewall of the whole machine. A bridge refuses
/// nothing: what is not let through is dropped. Asking whose an address is goes on, and so do the bridge's cards that lead out.
fn bridged(seen: &Neighbours) -> String {
    let apps = || seen.apps.iter().enumerate();
    let own =
        apps().flat_map(|(at, (_, ends))| ends.cards.iter().map(move |it| format!("{it} : goto of_{at}")));
    let mut chains = String::new();
    for (at, (app, ends)) in apps() {
        let own = match app {
            Some(_) => one_of("ether saddr", ends.cards.iter()),
            None => String::new(),
        };
        let _ = write!(
            chains,
            "  chain of_{at} {{
{own}    ether saddr @callers drop
    tcp flags & (syn | ack) == syn drop
  }}
"
        );
    }
    let cards = |of: &Ends| of.cards.iter().map(ToString::to_string).collect::<Vec<_>>();
    format!(
        "  map apps {{ type ether_addr : verdict; {own} }}
  set callers {{ type ether_addr; {callers} }}
  set others {{ type ether_addr; {others} }}
{chains}  chain from_app {{
    ether daddr vmap @apps
    ether daddr @others accept
    ether type arp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    meta oifkind \"veth\" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ether saddr @callers goto from_app
    ether daddr vmap @apps
  }}
",
        own = elements(own),
        callers = elements(seen.apps.values().flat_map(cards)),
        others = elements(cards(&seen.others).into_iter()),
    )
}

fn one_of(field: &str, of: impl Iterator<Item = impl ToString>) -> String {
    let all: Vec<String> = of.map(|it| it.to_string()).collect();
    if all.is_empty() { String::new() } else { format!("    {field} {{ {} }} accept\n", all.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::neighbours::tests::{app, seen};
    use super::*;

    fn text(seen: &Neighbours) -> String {
        let owner = Owner::new("rung-1a2b3c4d", Path::new("/data"));
        let users = UsersOfApps::from([(app("shop").unwrap(), 70_001)]);
        rules(&owner, seen, &users)
    }

    fn chain<'a>(text: &'a str, table: &str, name: &str) -> &'a str {
        let table = text.split_once(&format!("table {table} rung_1a2b3c4d_containers {{")).unwrap().1;
        let chain = table.split_once(&format!("  chain {name} {{\n")).unwrap().1;
        chain.split_once("  }\n").unwrap().0
    }

    #[test]
    fn an_app_is_reached_by_itself_and_a_build_by_nobody() {
        let text = text(&seen());
        let shop = "    meta skuid 70001 accept\n    ip saddr { 172.17.0.2 } accept\n    ip6 saddr { fe80::42:acff:fe11:2 } accept\n    goto refused\n";
        assert_eq!(chain(&text, "inet", "of_1"), shop, "{text}");
        assert_eq!(chain(&text, "inet", "of_0"), "    goto refused\n", "a build's container: {text}");
        assert!(chain(&text, "bridge", "of_1").starts_with("    ether saddr { 02:42:ac:11:00:02 } accept\n"));
        assert!(text.contains("elements = { 172.17.0.3 : goto of_0, 172.17.0.2 : goto of_1 }"), "{text}");
        assert!(text.contains(
            "set networks4 { type ipv4_addr; flags interval; auto-merge; elements = { 172.17.0.0/16 } }"
        ));
    }

    #[test]
    fn a_machine_without_containers_has_empty_sets() {
        let text = text(&Neighbours::default());
        assert!(
            !text.contains("elements") && !text.contains("{  }"),
            "nft does not read an empty list: {text}"
        );
        assert!(
            text.find("delete table bridge").unwrap()
                < text.find("table inet rung_1a2b3c4d_containers {").unwrap()
        );
    }
}
