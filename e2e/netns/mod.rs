//! Tests in network namespaces: a file here exports `TESTS` (`tests![…]`) and has one line below.

kilo_e2e::test_files! {
    clock,
    crash,
    hostile,
    host_device,
    host_firewall,
    host_policy,
    host_lab,
    host_names,
    host_routes,
    mesh_changes,
    mesh_crowd,
    mesh_outage,
    mesh_drift,
    mesh_failover,
    mesh_ipv6,
    mesh_place,
    runner,
    taking_over,
    upstream_bugs,
    world,
}
