//! Tests against a real API server: a file here exports `TESTS` (`tests![…]`) and has one line below.

kilo_e2e::test_files! {
    agents_mesh,
    api_backend,
    api_outage,
    api_policies,
    connect,
    mixed_mesh,
    webhook,
}
