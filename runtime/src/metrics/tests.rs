//! What a scrape sees.

use super::*;
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    peer: String,
}

fn peer(name: &str) -> Labels {
    Labels { peer: name.to_owned() }
}

#[test]
fn counters_keep_linkerds_names() {
    let registry = Registry::default();
    registry.counters::<Labels>("request_total", "Requests", 10).get(peer("a")).inc_by(3);
    let text = registry.render();
    assert!(
        text.contains(
            "# HELP request_total Requests.\n# TYPE request_total counter\nrequest_total{peer=\"a\"} 3\n"
        ),
        "{text}"
    );
    assert!(
        !text.contains("request_total_total") && !text.contains("# UNIT") && !text.contains("# EOF"),
        "{text}"
    );
}

#[test]
fn a_family_without_series_is_not_announced() {
    let registry = Registry::default();
    let _family = registry.counters::<Labels>("request_total", "Requests", 10);
    assert!(!registry.render().contains("request_total counter"));
}

#[test]
fn latencies_have_linkerds_buckets_in_milliseconds() {
    let registry = Registry::default();
    let latency = registry.histogram("response_latency_ms", "Latency", Buckets::LATENCY_MS);
    latency.record(Duration::from_millis(1));
    latency.record(Duration::from_micros(1001));
    latency.record(Duration::from_hours(1));
    let text = registry.render();
    for line in [
        "# TYPE response_latency_ms histogram",
        "response_latency_ms_count 3",
        "response_latency_ms_bucket{le=\"1.0\"} 1",
        "response_latency_ms_bucket{le=\"2.0\"} 2",
        "response_latency_ms_bucket{le=\"50000.0\"} 2",
        "response_latency_ms_bucket{le=\"+Inf\"} 3",
        "response_latency_ms_sum 3600002.001",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line} is missing in {text}");
    }
    assert_eq!(text.matches("response_latency_ms_bucket").count(), 26);
}

#[test]
fn sizes_are_recorded_as_they_are() {
    let sizes = Histogram::new(Buckets::plain(&[10.0, 100.0]));
    for size in [0, 10, 11, 1000] {
        sizes.observe(size);
    }
    assert_eq!(sizes.count(), 4);
}

#[test]
fn a_gauge_counts_guards() {
    let gauge = Gauge::default();
    let (a, b) = (gauge.guard(), gauge.guard());
    assert_eq!(gauge.get(), 2);
    drop(a);
    assert_eq!(gauge.get(), 1);
    drop(b);
    assert_eq!(gauge.get(), 0);
}

#[test]
fn beyond_the_budget_series_are_folded_and_counted() {
    let registry = Registry::default();
    let family = registry.counters::<Labels>("request_total", "Requests", 2);
    let held: Vec<Counter> =
        ["a", "b", "c", "d", "a"].into_iter().map(|name| family.get(peer(name))).collect();
    held.iter().for_each(Counter::inc);
    let text = registry.render();
    assert!(text.contains("request_total{peer=\"a\"} 2\n"), "{text}");
    assert!(text.contains("request_total{peer=\"b\"} 1\n"), "{text}");
    assert!(text.contains("request_total{overflow=\"true\"} 2\n"), "{text}");
    assert!(text.contains("remora_metrics_folded_total{family=\"request_total\"} 2\n"), "{text}");
    assert!(!text.contains("peer=\"c\""), "{text}");
}

#[test]
fn no_overflow_is_printed_while_there_is_none() {
    let registry = Registry::default();
    let family = registry.counters::<Labels>("request_total", "Requests", 1);
    family.get(peer("a")).inc();
    assert!(!registry.render().contains("overflow=\"true\"} "));
}

#[tokio::test(start_paused = true)]
async fn a_series_outlives_its_last_handle_for_ten_minutes() {
    let registry = Registry::default();
    let family = registry.counters::<Labels>("request_total", "Requests", 10);
    let held = family.get(peer("held"));
    family.get(peer("gone")).inc();
    let is_printed = |name: &str| registry.render().contains(&format!("request_total{{peer=\"{name}\"}}"));

    assert!(is_printed("gone"));
    tokio::time::advance(RETAIN_IDLE.checked_sub(Duration::from_secs(1)).unwrap()).await;
    assert!(is_printed("gone"));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!is_printed("gone"));
    assert!(is_printed("held"));
    held.inc();
    assert_eq!(family.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_series_that_is_asked_for_again_is_kept_with_its_value() {
    let registry = Registry::default();
    let family = registry.counters::<Labels>("request_total", "Requests", 10);
    family.get(peer("a")).inc();
    registry.render();
    tokio::time::advance(RETAIN_IDLE / 2).await;
    let again = family.get(peer("a"));
    tokio::time::advance(RETAIN_IDLE * 2).await;
    registry.render();
    assert_eq!((again.get(), family.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn abandoned_series_make_room() {
    let registry = Registry::default();
    let family = registry.counters::<Labels>("request_total", "Requests", 1);
    family.get(peer("old")).inc();
    family.get(peer("new")).inc();
    tokio::time::advance(RETAIN_IDLE).await;
    family.get(peer("newer")).inc();
    let text = registry.render();
    assert!(text.contains("peer=\"newer\"") && !text.contains("peer=\"old\""), "{text}");
}

#[test]
fn every_process_describes_itself() {
    let registry = Registry::default();
    registry.build_info("1.2.3", "remora");
    let text = registry.render();
    for name in [
        "process_start_time_seconds ",
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "process_virtual_memory_bytes ",
        "process_open_fds ",
        "process_max_fds ",
        "proxy_build_info{version=\"1.2.3\",vendor=\"remora\"} 1",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing in {text}");
    }
}

#[test]
fn every_sample_belongs_to_the_type_before_it() {
    let registry = Registry::default();
    registry.build_info("1", "remora");
    registry.counters::<Labels>("a_total", "A", 10).get(peer("quote\" slash\\ line\n")).inc();
    registry.histograms::<Labels>("b_seconds", "B", 10, Buckets::ROUTE_SECONDS).get(peer("x"));
    registry.register("c", "C", ReadGauge::new(|| 7));
    let text = registry.render();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap().to_owned();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(name == family || base == Some(&family), "{line:?} follows the type of {family:?}");
        }
    }
    assert!(text.contains("c 7\n"), "{text}");
    assert!(text.contains(r#"a_total{peer="quote\" slash\\ line\n"} 1"#), "{text}");
}

#[test]
fn gzip_holds_the_same_text() {
    use std::io::Read as _;
    let registry = Registry::default();
    registry.counter("a_total", "A").inc();
    let mut text = String::new();
    flate2::read::GzDecoder::new(registry.render_gzip().as_slice()).read_to_string(&mut text).unwrap();
    assert!(text.contains("a_total 1\n"), "{text}");
}
