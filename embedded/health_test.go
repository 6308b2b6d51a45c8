package embedded

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestHealth(t *testing.T) {
	s, err := Start(t.Context(), WithTempStore())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	if err := s.Health(); err != nil {
		t.Errorf("a fresh server: %v", err)
	}
	// What the server does when it has no room.
	if err := s.srv.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	if err := s.Health(); !errors.Is(err, ErrStoreFailed) {
		t.Errorf("without JetStream: %v", err)
	}
	s.Kill()
	if err := s.Health(); !errors.Is(err, ErrStopped) {
		t.Errorf("stopped: %v", err)
	}
}

// A disk that is full when the server starts can't be had in a test.
func TestRoom(t *testing.T) {
	for _, tt := range []struct {
		limit int64
		used  uint64
		ok    bool
	}{{1 << 20, 0, true}, {1 << 20, 1 << 19, true}, {0, 0, false}, {1 << 19, 1 << 20, false}, {1 << 20, 1 << 20, false}} {
		err := roomFor("/store", tt.limit, tt.used)
		if (err == nil) != tt.ok || err != nil && (!errors.Is(err, ErrStartFailed) || !strings.Contains(err.Error(), "/store")) {
			t.Errorf("%d of %d: %v", tt.used, tt.limit, err)
		}
	}
	s, err := Start(t.Context(), WithTempStore(), WithMaxStore(1))
	if err != nil {
		t.Fatalf("a limit that was given is not the disk's: %v", err)
	}
	s.Kill()
}

// Files of the store that are removed or replaced under the server.
func TestHealthOfRemovedFiles(t *testing.T) {
	replace := func(path string) error {
		if err := os.Rename(path, path+".old"); err != nil {
			return err
		}
		return os.CopyFS(path, os.DirFS(path+".old"))
	}
	inStream := func(file string, do func(string) error) func(string) error {
		return func(dir string) error { return do(filepath.Join(dir, "jetstream", "$G", "streams", "KV_b", file)) }
	}
	for name, harm := range map[string]func(dir string) error{
		"store removed":   os.RemoveAll,
		"store replaced":  replace,
		"lock removed":    func(dir string) error { return os.Remove(filepath.Join(dir, lockFileName)) },
		"streams removed": func(dir string) error { return os.RemoveAll(filepath.Join(dir, "jetstream")) },
		"stream removed":  inStream("", os.RemoveAll),
		"blocks removed":  inStream("msgs", os.RemoveAll),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			s, err := Start(t.Context(), WithStoreDir(dir), WithSync(SyncInterval(time.Second)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Kill()
			nc, err := s.Connect()
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			bucket, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b"})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Health(); err != nil {
				t.Errorf("an empty bucket: %v", err)
			}
			if _, err := bucket.PutString(t.Context(), "k", "v"); err != nil {
				t.Fatal(err)
			}
			if err := s.Health(); err != nil {
				t.Errorf("before: %v", err)
			}
			if err := harm(dir); err != nil {
				t.Fatal(err)
			}
			if err := s.Health(); !errors.Is(err, ErrStoreGone) {
				t.Errorf("after: %v", err)
			}
		})
	}
}
