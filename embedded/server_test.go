package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
)

func start(t *testing.T, opts ...embedded.Option) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(testContext(t), opts...)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { shutdown(t, s) })
	return s
}

func shutdown(t *testing.T, s *embedded.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func connect(t *testing.T, dial func(...nats.Option) (*nats.Conn, error), opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	nc, err := dial(opts...)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// put is for a server that stands alone and so answers at once.
func put(t *testing.T, kv jetstream.KeyValue, key string) {
	t.Helper()
	if _, err := kv.PutString(testContext(t), key, "v"); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func createBucket(t *testing.T, js jetstream.JetStream, replicas int) jetstream.KeyValue {
	t.Helper()
	kv, err := js.CreateKeyValue(testContext(t), jetstream.KeyValueConfig{Bucket: "b", Replicas: replicas})
	if err != nil {
		t.Fatalf("create bucket: %v", err)
	}
	return kv
}

func TestInProcessOnlyByDefault(t *testing.T) {
	s := start(t, embedded.WithTempStore())
	if s.ClientURL() != "" || s.Addr() != nil || s.ClusterAddr() != nil {
		t.Errorf("a listener without WithListen: url %q, addr %v, cluster %v", s.ClientURL(), s.Addr(), s.ClusterAddr())
	}
	kv := createBucket(t, connect(t, s.Connect), 1)
	if _, err := kv.Put(testContext(t), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if n := s.NumClients(); n != 1 {
		t.Errorf("NumClients = %d, want 1", n)
	}
}

func TestConnectCannotBeLedElsewhere(t *testing.T) {
	a, b := start(t, embedded.WithTempStore(), embedded.WithServerName("a")), start(t, embedded.WithTempStore())
	nc, err := a.Connect(nats.InProcessServer(b))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if got := nc.ConnectedServerName(); got != a.Name() || got != "a" {
		t.Errorf("connected to %q, want %q", got, "a")
	}
}

func TestListener(t *testing.T) {
	s := start(t, embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"))
	js := connect(t, func(o ...nats.Option) (*nats.Conn, error) { return nats.Connect(s.ClientURL(), o...) })
	createBucket(t, js, 1)
	if s.ClientURL() != "nats://"+s.Addr().String() {
		t.Errorf("url %q, address %v", s.ClientURL(), s.Addr())
	}
}

func TestNonLoopback(t *testing.T) {
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:4222", "example.com:4222"} {
		_, err := embedded.Start(testContext(t), embedded.WithTempStore(), embedded.WithListen(addr))
		if !errors.Is(err, embedded.ErrInvalidOption) || !strings.Contains(err.Error(), "WithAllowNonLoopback") {
			t.Errorf("listen on %q: %v", addr, err)
		}
		_, err = embedded.Start(testContext(t), embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"),
			embedded.WithServerName("n"), embedded.WithCluster("c", addr, "127.0.0.1:1"))
		if !errors.Is(err, embedded.ErrInvalidOption) || !strings.Contains(err.Error(), "WithAllowNonLoopback") {
			t.Errorf("cluster on %q: %v", addr, err)
		}
	}
	for _, addr := range []string{"localhost:0", "127.0.0.2:0"} {
		if _, err := embedded.Start(canceled(t), embedded.WithTempStore(), embedded.WithListen(addr)); errors.Is(err, embedded.ErrInvalidOption) {
			t.Errorf("listen on %q: %v", addr, err)
		}
	}
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestDataSurvivesRestart(t *testing.T) {
	for _, mode := range []embedded.SyncMode{embedded.SyncAlways, embedded.SyncInterval(testTimeout)} {
		t.Run(mode.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "made", "on", "demand")
			s := start(t, embedded.WithStoreDir(dir), embedded.WithSync(mode))
			rev, err := createBucket(t, connect(t, s.Connect), 1).Put(testContext(t), "k", []byte("v"))
			if err != nil {
				t.Fatal(err)
			}
			if s.StoreDir() != dir {
				t.Errorf("StoreDir = %q, want %q", s.StoreDir(), dir)
			}
			shutdown(t, s)

			s = start(t, embedded.WithStoreDir(dir), embedded.WithSync(mode))
			kv, err := connect(t, s.Connect).KeyValue(testContext(t), "b")
			if err != nil {
				t.Fatal(err)
			}
			e, err := kv.Get(testContext(t), "k")
			if err != nil || string(e.Value()) != "v" || e.Revision() != rev {
				t.Errorf("after restart: %v, %v", e, err)
			}
		})
	}
}

func TestStoreInUse(t *testing.T) {
	dir := t.TempDir()
	first := start(t, embedded.WithStoreDir(dir), embedded.WithListen("127.0.0.1:0"))
	_, err := embedded.Start(testContext(t), embedded.WithStoreDir(dir))
	var inUse *embedded.StoreInUseError
	if !errors.Is(err, embedded.ErrStoreInUse) || !errors.As(err, &inUse) {
		t.Fatalf("second server on one store: %v", err)
	}
	want := embedded.StoreInUseError{Dir: dir, PID: os.Getpid(), URL: first.ClientURL()}
	if *inUse != want {
		t.Errorf("got %+v, want %+v", *inUse, want)
	}
	// The refused one must not have taken the lock or its owner's name away.
	if _, err := embedded.Start(testContext(t), embedded.WithStoreDir(dir)); !errors.As(err, &inUse) || *inUse != want {
		t.Errorf("third server on one store: %v", err)
	}
	shutdown(t, first)
	start(t, embedded.WithStoreDir(dir))
}

func TestStoreInUseAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), exe)
	cmd.Env = append(os.Environ(), ownerEnv+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')

	_, err = embedded.Start(testContext(t), embedded.WithStoreDir(dir))
	want := embedded.StoreInUseError{Dir: dir, PID: cmd.Process.Pid, URL: strings.TrimSpace(line)}
	var inUse *embedded.StoreInUseError
	if !errors.As(err, &inUse) || *inUse != want {
		t.Errorf("store of another process: %v, want %+v", err, want)
	}

	// A killed owner leaves its files behind, but no lock.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	start(t, embedded.WithStoreDir(dir))
}

func TestTempStoreIsRemoved(t *testing.T) {
	s := start(t, embedded.WithTempStore())
	if _, err := os.Stat(s.StoreDir()); err != nil {
		t.Fatal(err)
	}
	shutdown(t, s)
	if _, err := os.Stat(s.StoreDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary store after shutdown: %v", err)
	}
}

func TestShutdown(t *testing.T) {
	s := start(t, embedded.WithTempStore())
	disconnected := make(chan struct{})
	connect(t, s.Connect, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(disconnected) }))

	if err := s.Shutdown(canceled(t)); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown with an ended context: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { shutdown(t, s) })
	}
	wg.Wait()
	<-disconnected
	if err := s.Shutdown(canceled(t)); err != nil {
		t.Errorf("Shutdown of a stopped server: %v", err)
	}
	if nc, err := s.Connect(); !errors.Is(err, embedded.ErrStopped) {
		t.Errorf("Connect to a stopped server: %v, %v", nc, err)
	}
	if _, err := s.InProcessConn(); !errors.Is(err, embedded.ErrStopped) {
		t.Errorf("InProcessConn to a stopped server: %v", err)
	}
}

func TestStartWithEndedContext(t *testing.T) {
	dir := t.TempDir()
	if _, err := embedded.Start(canceled(t), embedded.WithStoreDir(dir)); !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	}
	start(t, embedded.WithStoreDir(dir))
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	dir := t.TempDir()
	_, err = embedded.Start(testContext(t), embedded.WithStoreDir(dir), embedded.WithListen(taken))
	if !errors.Is(err, embedded.ErrStartFailed) || !strings.Contains(err.Error(), taken) {
		t.Errorf("client port taken: %v", err)
	}
	_, err = embedded.Start(testContext(t), embedded.WithStoreDir(dir), embedded.WithListen("127.0.0.1:0"),
		embedded.WithServerName("n"), embedded.WithCluster("c", taken, taken))
	if !errors.Is(err, embedded.ErrStartFailed) {
		t.Errorf("cluster port taken: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "jetstream", "$G")); err == nil {
		t.Error("a server that never started has streams")
	}
	start(t, embedded.WithStoreDir(dir)) // the failed ones left the store free
}

func TestUnusableStore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(testContext(t), embedded.WithStoreDir(file)); !errors.Is(err, embedded.ErrStartFailed) {
		t.Errorf("store is a file: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(testContext(t), embedded.WithStoreDir(dir)); !errors.Is(err, embedded.ErrStartFailed) {
		t.Errorf("JetStream's directory is a file: %v", err)
	}
}

func TestStorageLimit(t *testing.T) {
	s := start(t, embedded.WithTempStore(), embedded.WithMaxStore(1<<20), embedded.WithMaxMemory(1<<19))
	js := connect(t, s.Connect)
	for storage, limit := range map[jetstream.StorageType]int64{jetstream.FileStorage: 1 << 20, jetstream.MemoryStorage: 1 << 19} {
		if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "big", Storage: storage, MaxBytes: limit + 1}); err == nil {
			t.Errorf("%v: a stream above the server's limit was accepted", storage)
		}
		if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "fits", Storage: storage, MaxBytes: limit}); err != nil {
			t.Errorf("%v: %v", storage, err)
		}
		_ = js.DeleteStream(testContext(t), "fits")
	}
}

func TestLogger(t *testing.T) {
	var out syncBuffer
	s := start(t, embedded.WithTempStore(), embedded.WithLogger(slog.New(slog.NewTextHandler(&out, nil))))
	shutdown(t, s)
	for _, want := range []string{"Server is ready", "level=INFO", "Initiating Shutdown"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "level=DEBUG") {
		t.Error("debug messages for a logger that is not at that level")
	}
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
