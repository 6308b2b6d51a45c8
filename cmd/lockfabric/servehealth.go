package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/fabric/fabricprom"
	"github.com/lockfabric/lockfabric/internal/pause"
)

// health answers HTTP probes.
type health struct {
	check   atomic.Pointer[func() error] // nil until the server has started
	metrics http.Handler
}

var errStarting = errors.New("the server has not started yet")

func (h *health) ready(check func() error) { h.check.Store(&check) }

// ServeHTTP implements http.Handler: /livez reports that the process runs, /readyz that locks can be acquired and
// released, and /metrics is for Prometheus.
func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
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

// listen answers probes at an address until stop is called, which waits. It returns the address.
func (h *health) listen(addr string) (at string, stop func(), err error) {
	if addr == "" {
		return "", func() {}, nil
	}
	l, err := listenOn("serve --health", addr)
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = serveUntil(ctx, srv, l, time.Second) })
	return l.Addr().String(), func() { cancel(); wg.Wait() }, nil
}

// serveUntil serves until ctx ends, and then gives running requests the grace time to end.
func serveUntil(ctx context.Context, srv *http.Server, l net.Listener, grace time.Duration) error {
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case <-ctx.Done():
	case err := <-ended:
		return err
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := srv.Shutdown(limited)
	_ = srv.Close()
	if serr := <-ended; !errors.Is(serr, http.ErrServerClosed) {
		err = cmp.Or(err, serr)
	}
	return err
}

// listenOn listens at the address of a flag. Unless the system refused, an error is a usage error.
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

// notify reports the state of a service of type notify to systemd. Without systemd it does nothing.
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

// metrics are the metrics of serve: of the process, of the coalescers' managers, and of the server after its start.
type metrics struct {
	*prometheus.Registry
	coalescer *fabricprom.Collector
}

func newMetrics() *metrics {
	m := &metrics{prometheus.NewRegistry(), fabricprom.New()}
	m.MustRegister(m.coalescer, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// serverStats is a prometheus.Collector.
type serverStats struct{ *embedded.Server }

// serverMetrics lists all metrics of the server.
var serverMetrics = []struct {
	kind       prometheus.ValueType
	name, help string
	value      func(s embedded.Stats) uint64
}{
	{prometheus.GaugeValue, "connections", "Clients that are connected.", func(s embedded.Stats) uint64 { return s.Connections }},
	{prometheus.CounterValue, "connections_total", "Clients that were connected.", func(s embedded.Stats) uint64 { return s.TotalConnections }},
	{prometheus.GaugeValue, "subscriptions", "Subscriptions.", func(s embedded.Stats) uint64 { return s.Subscriptions }},
	{prometheus.CounterValue, "slow_consumers_total", "Connections that were cut because they took too little.", func(s embedded.Stats) uint64 { return s.SlowConsumers }},
	{prometheus.CounterValue, "in_messages_total", "Messages from clients and servers.", func(s embedded.Stats) uint64 { return s.InMessages }},
	{prometheus.CounterValue, "in_bytes_total", "Bytes of these.", func(s embedded.Stats) uint64 { return s.InBytes }},
	{prometheus.CounterValue, "out_messages_total", "Messages to clients and servers.", func(s embedded.Stats) uint64 { return s.OutMessages }},
	{prometheus.CounterValue, "out_bytes_total", "Bytes of these.", func(s embedded.Stats) uint64 { return s.OutBytes }},
	{prometheus.GaugeValue, "routes", "Connections to other servers of the cluster.", func(s embedded.Stats) uint64 { return s.Routes }},
	{prometheus.GaugeValue, "streams", "Streams that this server keeps.", func(s embedded.Stats) uint64 { return s.Streams }},
	{prometheus.GaugeValue, "streams_led", "Those that it leads in a cluster.", func(s embedded.Stats) uint64 { return s.StreamsLed }},
	{prometheus.GaugeValue, "consumers", "Consumers of its streams.", func(s embedded.Stats) uint64 { return s.Consumers }},
	{prometheus.GaugeValue, "stored_messages", "Messages in its streams.", func(s embedded.Stats) uint64 { return s.StoredMessages }},
	{prometheus.GaugeValue, "stored_bytes", "Bytes of these.", func(s embedded.Stats) uint64 { return s.StoredBytes }},
	{prometheus.CounterValue, "api_requests_total", "Requests to JetStream's API.", func(s embedded.Stats) uint64 { return s.APIRequests }},
	{prometheus.CounterValue, "api_errors_total", "Those that ended with an error.", func(s embedded.Stats) uint64 { return s.APIErrors }},
	{prometheus.GaugeValue, "leader_known", "1 where JetStream is alone, or knows the leader of its cluster.", func(s embedded.Stats) uint64 {
		if s.Clustered && !s.Leader {
			return 0
		}
		return 1
	}},
}

// Describe sends nothing, because the metrics are always the same.
func (serverStats) Describe(chan<- *prometheus.Desc) {}

func (s serverStats) Collect(ch chan<- prometheus.Metric) {
	st := s.Stats()
	for _, m := range serverMetrics {
		desc := prometheus.NewDesc("lockfabric_server_"+m.name, m.help, nil, nil)
		ch <- prometheus.MustNewConstMetric(desc, m.kind, float64(m.value(st)))
	}
}

// selfClient is a task of this process that uses a connection to its own server; nil is no task.
type selfClient struct {
	nc   *nats.Conn
	stop context.CancelFunc
	task sync.WaitGroup
}

// startSelfClient connects, and starts the task.
func startSelfClient(srv *embedded.Server, name string, log *slog.Logger, work func(ctx context.Context, nc *nats.Conn)) (*selfClient, error) {
	nc, err := srv.Connect(nats.Name("lockfabric "+name), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Debug("a NATS client of this process reports an error", "error", err)
		}))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &selfClient{nc: nc, stop: stop}
	g.task.Go(func() { work(ctx, nc) })
	return g, nil
}

// clients returns how many of the server's clients belong to this task.
func (g *selfClient) clients() int {
	if g == nil || !g.nc.IsConnected() {
		return 0
	}
	return 1
}

// end stops the task and waits for it, which takes some seconds at most.
func (g *selfClient) end() {
	if g != nil {
		g.stop()
		g.task.Wait()
		g.nc.Close()
	}
}

// coalesceFor starts standing by as the coalescer of this server's fabrics. Locks work without it: errors are only
// logged.
func coalesceFor(srv *embedded.Server, log *slog.Logger, counted *fabricprom.Collector) *selfClient {
	g, err := startSelfClient(srv, "coalescer", log, func(ctx context.Context, nc *nats.Conn) {
		err := fabric.StandBy(ctx, nc, fabric.WithLabel("serve"), fabric.WithLogger(log), fabric.WithSweepInterval(0),
			fabric.WithEvents(counted.Event), fabric.WithWatch(counted.Watch))
		if err != nil {
			log.Warn("no coalescer here", "error", err)
		}
	})
	switch {
	case errors.Is(err, embedded.ErrCredentials):
		log.Info("no coalescer here: the configuration file has accounts of its own, and programs in them can be one")
	case err != nil:
		log.Warn("no coalescer here", "error", err)
	}
	return g
}

// divide creates the fabric with its shards. In a cluster, it does so in the background, when enough servers run.
func (v *serveCmd) divide(ctx context.Context, srv *embedded.Server, name string, s *streams) error {
	made := make(chan error, 1)
	g, err := startSelfClient(srv, "shards", s.log, func(ctx context.Context, nc *nats.Conn) {
		made <- makeFabric(ctx, nc, fabric.WithFabric(name), fabric.WithShards(v.Shards), fabric.WithLabel("serve"))
	})
	if err != nil {
		return err
	}
	wait := func() error {
		defer g.end()
		select {
		case err := <-made:
			return err
		case <-ctx.Done():
			return nil
		}
	}
	if srv.ClusterAddr() == nil {
		return wait()
	}
	go func() {
		if err := wait(); err != nil {
			s.log.Error("the fabric is not as --shards says", "fabric", name, "error", err)
		}
	}()
	return nil
}

// makeFabric opens a fabric when the servers answer.
func makeFabric(ctx context.Context, nc *nats.Conn, opts ...fabric.Option) error {
	for {
		m, err := pause.Within(ctx, shutdownTimeout, func(ctx context.Context) (*fabric.Manager, error) { return fabric.New(ctx, nc, opts...) })
		switch {
		case err == nil:
			return m.Close()
		case ctx.Err() != nil || !errors.Is(err, fabric.ErrUnavailable):
			return err
		}
		pause.For(ctx, time.Second)
	}
}
