// Observe shows what a program can see of its locks. An event hook prints what happens, and a Prometheus collector
// counts it. Two workers use one lock in turn, and a third hold ends without a renewal. Then the program reads its own
// metrics over HTTP once, as Prometheus would, prints those that have a value, and ends.
//
// It needs no installed server: without -server it starts one in this process.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricprom"
)

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "observe:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server string) error {
	metrics := fabricprom.New()
	registry := prometheus.NewRegistry()
	if err := registry.Register(metrics); err != nil {
		return err
	}
	hook := func(e fabric.Event) {
		metrics.Event(e)
		switch e.Type {
		case fabric.EventQueued:
			fmt.Fprintf(out, "%-8s %s by %s, place %d behind %s\n", e.Type, e.Key, e.Owner, e.Position, e.Blocker)
		case fabric.EventLost:
			fmt.Fprintf(out, "%-8s %s by %s: %v\n", e.Type, e.Key, e.Owner, e.Reason)
		default:
			fmt.Fprintf(out, "%-8s %s by %s\n", e.Type, e.Key, e.Owner)
		}
	}
	m, closeAll, err := demo.Connect(ctx, server, fabric.WithEvents(hook))
	if err != nil {
		return err
	}
	defer closeAll()
	stop := metrics.Watch(m)
	defer stop()

	if err := work(ctx, m); err != nil {
		return err
	}
	page, err := scrape(ctx, registry)
	if err != nil {
		return err
	}
	if err := m.Close(); err != nil { // after Close, the hook is not called any more
		return err
	}
	fmt.Fprint(out, "\n", page)
	return nil
}

// work causes events: alice holds while bob waits, and carol's hold ends without a renewal.
func work(ctx context.Context, m *fabric.Manager) error {
	alice, err := m.Acquire(ctx, "report", fabric.WithOwner("alice"))
	if err != nil {
		return err
	}
	bob := make(chan error, 1)
	go func() {
		bob <- m.Do(ctx, "report", func(context.Context, *fabric.Lock) error { return nil }, fabric.WithOwner("bob"))
	}()
	for { // until bob is in the queue
		info, err := m.Inspect(ctx, "report")
		if err != nil {
			return err
		}
		if len(info.Waiters) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := alice.Release(ctx); err != nil {
		return err
	}
	if err := <-bob; err != nil {
		return err
	}
	carol, err := m.Acquire(ctx, "cleanup", fabric.WithOwner("carol"), fabric.WithTTL(500*time.Millisecond), fabric.WithAutoRenew(false))
	if err != nil {
		return err
	}
	<-carol.Lost()
	return nil
}

// scrape serves the metrics on a free port of this host and reads them once. It returns the lines that have a value,
// without the buckets of the histograms.
func scrape(ctx context.Context, registry *prometheus.Registry) (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	defer func() {
		_ = srv.Close()
		<-served
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+lis.Addr().String()+"/metrics", http.NoBody)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var page strings.Builder
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if line := lines.Text(); !strings.HasPrefix(line, "#") && !strings.Contains(line, "_bucket{") && !strings.HasSuffix(line, " 0") {
			page.WriteString(line + "\n")
		}
	}
	return page.String(), lines.Err()
}
