# The image of kg and kgctl: two static programs and the CNI plugins, on nothing.
# `make image` makes and tries the same tree without a container engine.

FROM docker.io/library/golang:1.26-bookworm AS cni
COPY .ci/build-cni /build-cni
RUN bash /build-cni /opt/cni/bin

FROM docker.io/library/rust:1.95.0-bookworm AS programs
WORKDIR /src
COPY . .
RUN bash .ci/build-programs /opt/bin

FROM scratch
COPY --from=programs /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=cni /opt/cni/bin /opt/cni/bin
COPY --from=programs /opt/bin /opt/bin
ENV PATH=/opt/bin
ENTRYPOINT ["/opt/bin/kg"]
