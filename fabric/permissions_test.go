package fabric_test

import (
	"errors"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// A name with a wildcard would allow more than is meant.
func TestPermissionsOfNamesThatAreNone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fabric string
		role   fabric.Role
		inbox  string
	}{{">", fabric.RoleClient, "_INBOX"}, {"a.b", fabric.RoleClient, "_INBOX"}, {"a", "boss", "_INBOX"}, {"a", fabric.RoleClient, ""}, {"a", fabric.RoleClient, "*"}, {"a", fabric.RoleClient, "a.>"}} {
		if all, err := fabric.Permissions(tt.fabric, tt.role, tt.inbox, 1); !errors.Is(err, fabric.ErrInvalidOption) || all != nil {
			t.Errorf("%+v: %v, %v", tt, all, err)
		}
	}
}
