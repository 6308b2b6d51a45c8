package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/ui"
	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

type uiCmd struct {
	Listen       string   `default:"127.0.0.1:4280" placeholder:"HOST:PORT" help:"Address of the page. Default: 127.0.0.1:4280. Port 0 selects a free port. An address that other hosts can reach needs --tls-cert and --tls-key."`
	Host         []string `placeholder:"NAME" help:"Name under which browsers may ask for the page, beside localhost and addresses. May be repeated."`
	TLSCert      string   `name:"tls-cert" placeholder:"FILE" help:"Speak TLS with browsers, with this certificate."`
	TLSKey       string   `name:"tls-key" placeholder:"FILE" help:"Private key of --tls-cert."`
	TokenFile    string   `placeholder:"FILE" help:"Ask browsers for the token in this file, in place of a new one that is printed; or in LOCKFABRIC_UI_TOKEN."`
	AllowRelease bool     `help:"Allow users with the token to take locks away from their holders."`
}

// uiTokenEnv is the variable for the page's token.
const uiTokenEnv = "LOCKFABRIC_UI_TOKEN"

// pageAt is the JSON that ui prints when the page is ready.
type pageAt struct {
	URL   string `json:"url"`   // with the token, unless the token was configured
	Login bool   `json:"login"` // the page asks for the configured token
	TLS   bool   `json:"tls"`
}

func (u *uiCmd) Run(ctx context.Context, c *cli, s *streams) error {
	l, err := u.listen("ui --listen")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return c.untilInterrupted(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		err := s.print(c.Output, l.at, func(w io.Writer) { fmt.Fprintf(w, "open %s\n", l.at.URL) })
		if err != nil {
			return err
		}
		return u.serve(ctx, l, m, c.Fabric, s.log)
	})
}

// pageListener contains the page's listener and its settings.
type pageListener struct {
	net.Listener
	at    pageAt
	token string
}

// listen opens the address of the flag.
func (u *uiCmd) listen(flag string) (*pageListener, error) {
	certs, err := u.check(flag)
	if err != nil {
		return nil, err
	}
	given, err := readSecret("ui --token-file", u.TokenFile, uiTokenEnv)
	if err != nil {
		return nil, err
	}
	if given != "" && len(given) < ui.MinToken {
		return nil, usageError("ui: the token is too short: give at least %d characters", ui.MinToken)
	}
	l := &pageListener{token: cmp.Or(given, rand.Text())}
	if l.Listener, err = listenOn(flag, u.Listen); err != nil {
		return nil, err
	}
	at := url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/"}
	if certs != nil {
		at.Scheme = "https"
		l.Listener = tls.NewListener(l.Listener, &tls.Config{Certificates: certs})
	}
	if given == "" {
		at.Fragment = "token=" + l.token
	}
	l.at = pageAt{URL: at.String(), Login: given != "", TLS: certs != nil}
	return l, nil
}

// serve serves the page until ctx ends.
func (u *uiCmd) serve(ctx context.Context, l *pageListener, m *fabric.Manager, name string, log *slog.Logger) error {
	page := ui.New(m, ui.Config{Fabric: name, Token: l.token, Hosts: u.Host, AllowRelease: u.AllowRelease, State: state})
	err := serveUntil(ctx, &http.Server{
		Handler: page, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 1 << 16,
		BaseContext: func(net.Listener) context.Context { return ctx }, // this ends event streams
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}, l, 5*time.Second)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("ui: the page is served no more: %w", err)
	}
	return err
}

// check refuses an address at which others could read a token.
func (u *uiCmd) check(flag string) ([]tls.Certificate, error) {
	host, _, err := net.SplitHostPort(u.Listen)
	if err != nil {
		return nil, usageError("%s=%s: give HOST:PORT", flag, u.Listen)
	}
	if u.TLSCert+u.TLSKey != "" {
		cert, err := tls.LoadX509KeyPair(u.TLSCert, u.TLSKey)
		if err != nil {
			return nil, usageError("ui --tls-cert, --tls-key: %w", err)
		}
		return []tls.Certificate{cert}, nil
	}
	if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
		return nil, usageError("%s=%s: other hosts reach this address, and could read the token: give ui --tls-cert and --tls-key, or listen on loopback behind something that speaks TLS or SSH", flag, u.Listen)
	}
	return nil, nil
}

// showPage serves the read-only page of a fabric on this server. A browser waits until the server's cluster answers.
func showPage(srv *embedded.Server, l *pageListener, name string, s *streams) (*selfClient, error) {
	if l == nil {
		return nil, nil // no page
	}
	g, err := startSelfClient(srv, "ui", s.log, func(ctx context.Context, nc *nats.Conn) {
		m, err := fabric.New(ctx, nc, fabric.WithFabric(name), fabric.WithLazyLease(), fabric.WithSweepInterval(0), fabric.WithLogger(s.log))
		if err == nil {
			err = (&uiCmd{}).serve(ctx, l, m, name, s.log)
			_ = m.Close()
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("no page here", "error", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("serve --ui: %w", err)
	}
	return g, nil
}
