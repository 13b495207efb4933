# The gate alone: one static binary and the CA certificates that it verifies upstreams with.
# For an agent image: COPY --from=exitgate /exitgate /usr/local/bin/exitgate, and make it the ENTRYPOINT.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG COMMIT=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.commit=$COMMIT" -o /exitgate ./cmd/exitgate

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /exitgate /exitgate
ENTRYPOINT ["/exitgate"]
CMD ["run"]
