//! Where others reach a process: which URLs name one, and which one a process gives itself.
//!
//! **Invariants**
//! - A URL that a setting gives can be asked: a scheme of HTTP, and a host.
//! - A process that listens on every address names one that other hosts reach, if there is any.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use http::Uri;
use tokio::net::TcpListener;

use crate::error::{Error, Result};

/// Addresses of the documentation (RFC 5737, RFC 3849), towards which the default route leads.
/// Nothing is ever sent there.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const ANYWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Whether `url` names a process that can be asked.
///
/// # Errors
/// `Invalid`, naming the setting and what to write.
pub fn check_url(setting: &str, url: &str) -> Result<()> {
    let wrong = |what: &str| {
        let text = format!("{setting}: {url:?} {what}: write it like http://10.0.0.1:7001");
        Err(Error::Invalid(text))
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return wrong("does not begin with http:// or https://");
    }
    let Ok(parsed) = url.parse::<Uri>() else { return wrong("is not a URL") };
    match host(&parsed) {
        Some(name) if !name.is_empty() => {
            let is_number = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            if is_number && name.parse::<Ipv4Addr>().is_err() {
                return wrong("names no IP address");
            }
        }
        _ => return wrong("names no host"),
    }
    let written_port = parsed.authority().and_then(|all| all.as_str().rsplit_once(':'));
    let has_port = written_port.is_some_and(|(_, port)| !port.contains(']'));
    if has_port && parsed.port_u16().is_none_or(|port| port == 0) {
        return wrong("names no port that can be asked");
    }
    if parsed.query().is_some() || url.contains('#') {
        return wrong("has more than an address in it");
    }
    Ok(())
}

/// Whether `url` leads every host to itself.
pub fn is_loopback(url: &str) -> bool {
    let Ok(parsed) = url.parse::<Uri>() else { return false };
    let Some(host) = host(&parsed) else { return false };
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The URL of what is served on `listener`, as others best reach it.
pub fn own_url(listener: &TcpListener) -> Option<String> {
    let address = listener.local_addr().ok()?;
    Some(url_of(address, outward, host_name))
}

fn url_of(
    listen: SocketAddr,
    outward: impl FnOnce(IpAddr) -> Option<IpAddr>,
    host_name: impl FnOnce() -> Option<String>,
) -> String {
    if !listen.ip().is_unspecified() {
        return format!("http://{listen}");
    }
    let port = listen.port();
    if let Some(ip) = outward(listen.ip()) {
        return format!("http://{}", SocketAddr::new(ip, port));
    }
    let name = host_name().unwrap_or_else(|| Ipv4Addr::LOCALHOST.to_string());
    format!("http://{name}:{port}")
}

/// This machine's address on the way out of it; a socket that listens on `every` takes it.
fn outward(every: IpAddr) -> Option<IpAddr> {
    let v6 = every.is_ipv6().then_some(ANYWHERE_V6);
    // What listens on every IPv6 address takes IPv4 too, and more clients speak that.
    [Some(ANYWHERE), v6].into_iter().flatten().find_map(towards)
}

/// The local end of a route. To connect a datagram socket sends nothing.
fn towards(there: IpAddr) -> Option<IpAddr> {
    let any = match there {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((there, 9)).ok()?;
    let here = socket.local_addr().ok()?.ip();
    (!here.is_loopback() && !here.is_unspecified()).then_some(here)
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (!name.is_empty() && name.bytes().all(fits)).then_some(name)
}

/// The host without the brackets of an IPv6 address.
fn host(url: &Uri) -> Option<&str> {
    let host = url.host()?;
    Some(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_a_process_has_a_scheme_and_a_host() {
        for good in [
            "http://10.0.0.1:7001",
            "https://writer.example/cairn/",
            "http://writer:7001/",
            "http://[::1]:7001",
            "http://[::1]",
            "http://localhost",
        ] {
            check_url("advertise", good).unwrap();
        }
        for wrong in [
            "",
            "10.0.0.1:7001",
            "writer:7001",
            "ftp://writer:7001",
            "http://",
            "http:///x",
            "http://:7001",
            "http://10.0.0.300:7001",
            "http://writer:70010",
            "http://writer:0",
            "http://writer:7001?x=1",
            "http://writer:7001#x",
            "http://wri ter:7001",
        ] {
            let Err(Error::Invalid(text)) = check_url("advertise", wrong) else {
                panic!("{wrong} was taken")
            };
            assert!(text.starts_with("advertise: ") && text.contains("http://10.0.0.1:7001"));
        }
    }

    #[test]
    fn loopback_has_many_names() {
        for url in [
            "http://127.0.0.1:7001",
            "http://127.1.2.3",
            "http://[::1]:7001",
            "http://localhost:7001",
            "http://0.0.0.0:7001",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1:7001", "http://writer:7001", "http://[2001:db8::1]:7001"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn who_listens_everywhere_names_the_way_out() {
        let out = |_: IpAddr| Some("10.1.2.3".parse().unwrap());
        let nowhere = |_: IpAddr| None;
        let name = || Some("pod-7".to_owned());
        let of = |listen: &str| listen.parse::<SocketAddr>().unwrap();
        assert_eq!(url_of(of("0.0.0.0:7001"), out, name), "http://10.1.2.3:7001");
        assert_eq!(url_of(of("[::]:7001"), out, name), "http://10.1.2.3:7001");
        assert_eq!(url_of(of("0.0.0.0:7001"), nowhere, name), "http://pod-7:7001");
        assert_eq!(url_of(of("127.0.0.1:7001"), out, name), "http://127.0.0.1:7001");
        assert_eq!(url_of(of("[::1]:7001"), out, name), "http://[::1]:7001");
        assert_eq!(url_of(of("10.0.0.9:7001"), out, name), "http://10.0.0.9:7001");
    }

    #[test]
    fn the_way_out_is_never_loopback() {
        let every = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        if let Some(ip) = outward(every) {
            assert!(!ip.is_loopback() && !ip.is_unspecified(), "{ip}");
        }
        assert!(host_name().is_none_or(|name| !name.is_empty()));
    }
}
