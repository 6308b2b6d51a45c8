package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// health answers the probes of whoever runs a server.
type health struct {
	check   atomic.Pointer[func() error] // nil until the server has started
	metrics http.Handler
}

var errStarting = errors.New("the server has not started yet")

func (h *health) ready(check func() error) { h.check.Store(&check) }

// ServeHTTP implements http.Handler: /livez says that the process runs, /readyz that locks can be
// taken and released there; /metrics is for Prometheus.
func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := error(nil)
	switch r.URL.Path {
	case "/metrics":
		h.metrics.ServeHTTP(w, r)
		return
	case "/livez":
	case "/readyz":
		if err = errStarting; h.check.Load() != nil {
			err = (*h.check.Load())()
		}
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, oneLine(err.Error()), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// listen answers probes at an address until stop, which waits, and returns the address.
func (h *health) listen(addr string) (at string, stop func(), err error) {
	if addr == "" {
		return "", func() {}, nil
	}
	l, err := listenOn("serve --health", addr)
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	return l.Addr().String(), func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		_ = srv.Close()
		<-done
	}, nil
}

// listenOn listens at an address that a flag names. An error is one of usage unless the system refused.
func listenOn(flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	var refused *os.SyscallError
	switch {
	case errors.As(err, &refused):
		err = &exitError{exitUnavailable, fmt.Errorf("%s=%s: %w", flag, addr, err)}
	case err != nil:
		err = usageError("%s=%s: give HOST:PORT: %w", flag, addr, err)
	}
	return l, err
}

// notify tells systemd how it stands with a service of type notify. Without systemd it does
// nothing.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	_, _ = conn.Write([]byte(state))
	_ = conn.Close()
}
