//! Whether the environment sends an endpoint's requests through a proxy.
//!
//! We do not speak to proxies: a general client does, with all their authentication. So the question is only whether
//! one is in force, and in doubt the answer is yes, because the general client then decides again.

use super::Endpoint;

/// Whether `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` applies to the endpoint, and `NO_PROXY` does not take it out.
///
/// `var` looks an environment variable up. Names are tried in lower case first, as curl does.
pub fn is_proxied(endpoint: &Endpoint, var: impl Fn(&str) -> Option<String>) -> bool {
    let either = |name: &str| {
        var(&name.to_ascii_lowercase())
            .or_else(|| var(name))
            .filter(|value| !value.trim().is_empty())
    };
    let scheme = if endpoint.tls {
        "HTTPS_PROXY"
    } else {
        "HTTP_PROXY"
    };
    if either(scheme).or_else(|| either("ALL_PROXY")).is_none() {
        return false;
    }
    let exceptions = either("NO_PROXY").unwrap_or_default();
    !exceptions
        .split(',')
        .any(|rule| takes_out(rule.trim(), &endpoint.host))
}

/// `*`, a name with or without a leading dot, or an address. Networks (`10.0.0.0/8`) are left to the general client.
fn takes_out(rule: &str, host: &str) -> bool {
    let rule = rule.trim_start_matches('.').to_ascii_lowercase();
    let host = host.to_ascii_lowercase();
    match host.strip_suffix(&rule) {
        _ if rule == "*" => true,
        _ if rule.is_empty() => false,
        Some(front) => front.is_empty() || front.ends_with('.'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_curl() {
        let asked = |tls: bool, host: &str, environment: &[(&str, &str)]| {
            let endpoint = Endpoint {
                tls,
                host: host.into(),
                port: 1,
            };
            is_proxied(&endpoint, |name| {
                environment
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!asked(true, "a.b", &[]));
        assert!(asked(true, "a.b", &[("HTTPS_PROXY", "http://p")]));
        assert!(asked(
            true,
            "a.b",
            &[("https_proxy", "http://p"), ("NO_PROXY", "xa.b,c")]
        ));
        assert!(!asked(
            false,
            "a.b",
            &[("HTTPS_PROXY", "http://p"), ("http_proxy", "")]
        ));
        assert!(asked(
            false,
            "a.b",
            &[("all_proxy", "socks5://p"), ("no_proxy", "10.0.0.0/8")]
        ));
        for exception in ["*", "b", ".b", "x, A.B"] {
            let environment = [("ALL_PROXY", "http://p"), ("no_proxy", exception)];
            assert!(!asked(true, "a.b", &environment), "{exception}");
        }
    }
}
