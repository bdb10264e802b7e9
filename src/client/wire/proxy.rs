//! Whether the environment sends an endpoint's requests through a proxy.
//!
//! We do not speak to proxies: a general client does, with all their authentication. So the question is only whether
//! one is in force, and in doubt the answer is yes, because the general client then decides again.

use super::Endpoint;

/// Whether a proxy applies to the endpoint; see [`proxy_of`].
pub fn is_proxied(endpoint: &Endpoint, var: impl Fn(&str) -> Option<String>) -> bool {
    proxy_of(endpoint, var).is_some()
}

/// Which of `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` applies to the endpoint, unless `NO_PROXY` takes it out: the
/// proxy and its variable, for an error's text. User and password are left out.
///
/// `var` looks an environment variable up. Names are tried in lower case first, as curl does.
pub fn proxy_of(endpoint: &Endpoint, var: impl Fn(&str) -> Option<String>) -> Option<String> {
    let either = |name: &str| {
        var(&name.to_ascii_lowercase())
            .or_else(|| var(name))
            .filter(|value| !value.trim().is_empty())
    };
    let named = |name: &'static str| either(name).map(|value| (name, value));
    let scheme = if endpoint.tls {
        "HTTPS_PROXY"
    } else {
        "HTTP_PROXY"
    };
    let (name, value) = named(scheme).or_else(|| named("ALL_PROXY"))?;
    let exceptions = either("NO_PROXY").unwrap_or_default();
    let excepted = exceptions
        .split(',')
        .any(|rule| takes_out(rule.trim(), &endpoint.host));
    (!excepted).then(|| format!("{} of {name}", without_password(value.trim())))
}

fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{}", host.trim_end_matches('/'))
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
        assert_eq!(
            ["http://us%40er:w@p:1/", "p:1", "socks5://@p:1"].map(without_password),
            ["http://p:1", "http://p:1", "socks5://p:1"]
        );
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
