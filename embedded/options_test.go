package embedded_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/embedded"
)

func TestInvalidOptions(t *testing.T) {
	tests := map[string][]embedded.Option{
		"no store":             nil,
		"two stores":           {embedded.WithTempStore(), embedded.WithStoreDir(t.TempDir())},
		"empty store":          {embedded.WithStoreDir("")},
		"nil option":           {embedded.WithTempStore(), nil},
		"zero interval":        {embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(0))},
		"tiny interval":        {embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(time.Microsecond))},
		"negative interval":    {embedded.WithTempStore(), embedded.WithSync(embedded.SyncInterval(-time.Second))},
		"empty address":        {embedded.WithTempStore(), embedded.WithListen("")},
		"no port":              {embedded.WithTempStore(), embedded.WithListen("127.0.0.1")},
		"port by name":         {embedded.WithTempStore(), embedded.WithListen("127.0.0.1:nats")},
		"port out of range":    {embedded.WithTempStore(), embedded.WithListen("127.0.0.1:65536")},
		"store limit":          {embedded.WithTempStore(), embedded.WithMaxStore(0)},
		"memory limit":         {embedded.WithTempStore(), embedded.WithMaxMemory(-1)},
		"empty token":          {embedded.WithTempStore(), embedded.WithToken("")},
		"empty name":           {embedded.WithTempStore(), embedded.WithServerName("")},
		"name with spaces":     {embedded.WithTempStore(), embedded.WithServerName("a b")},
		"cluster without name": {embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"), embedded.WithCluster("c", "127.0.0.1:0", "127.0.0.1:1")},
		"cluster, no listener": {embedded.WithTempStore(), embedded.WithServerName("n"), embedded.WithCluster("c", "127.0.0.1:0", "127.0.0.1:1")},
		"cluster, no routes":   {embedded.WithTempStore(), embedded.WithServerName("n"), embedded.WithListen("127.0.0.1:0"), embedded.WithCluster("c", "127.0.0.1:0")},
		"cluster, bad route":   {embedded.WithTempStore(), embedded.WithServerName("n"), embedded.WithListen("127.0.0.1:0"), embedded.WithCluster("c", "127.0.0.1:0", "http://127.0.0.1:1")},
		"cluster, bad address": {embedded.WithTempStore(), embedded.WithServerName("n"), embedded.WithListen("127.0.0.1:0"), embedded.WithCluster("c", "", "127.0.0.1:1")},
		"cluster name":         {embedded.WithTempStore(), embedded.WithCluster("", "127.0.0.1:0")},
	}
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			s, err := embedded.Start(testContext(t), opts...)
			if !errors.Is(err, embedded.ErrInvalidOption) || s != nil {
				t.Errorf("got %v, %v", s, err)
			}
			if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
				t.Errorf("left on disk: %v", left)
			}
		})
	}
}
