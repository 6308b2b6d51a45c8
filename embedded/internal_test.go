package embedded

import (
	"testing"
	"time"
)

// What the default promises can't be seen without cutting the power, so look at
// what the server was told.
func TestSyncReachesTheServer(t *testing.T) {
	tests := map[string]struct {
		opts   []Option
		always bool
		every  time.Duration
	}{
		"default":  {nil, true, 0},
		"always":   {[]Option{WithSync(SyncAlways)}, true, 0},
		"interval": {[]Option{WithSync(SyncInterval(3 * time.Second))}, false, 3 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Start(t.Context(), append(tt.opts, WithTempStore())...)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Kill()
			got := s.srv.JetStreamConfig()
			if got.SyncAlways != tt.always || (!tt.always && got.SyncInterval != tt.every) {
				t.Errorf("server syncs always: %v, every %v", got.SyncAlways, got.SyncInterval)
			}
		})
	}
}
