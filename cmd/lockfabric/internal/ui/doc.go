// Package ui is the web page of lockfabric. It shows everything in use in one fabric, with holders and waiters, live,
// and it can take a lock away by force.
//
// [New] returns an [http.Handler] for a [Locks], which is a *fabric.Manager. The page is plain HTML, CSS and JavaScript
// that is embedded in the program. It requests nothing from other hosts.
//
// # Updates
//
// Each open page has one stream of server-sent events (GET api/events), and the stream has one loop over
// Manager.WatchAll, so one watcher of the whole bucket. A stream starts with everything in use and continues with
// changes, at most every 100 ms, with the newest state of each name. So a slow page gets fewer states, but no outdated
// ones. Without an open page, nothing is read. The process of a lease is read once, and again every few seconds. The
// details of one name come from a read of the leader (GET api/key).
//
// # Access
//
// Everything below api/ requires a session: a cookie (HttpOnly, SameSite=Strict) that the server sets for the token
// (POST api/login). The token is compared in constant time. This also applies on loopback, because other users of the
// host can connect there as well.
//
//   - A request is refused (421) unless its Host is an address, localhost, or an allowed name. So a foreign name that
//     resolves to this address (DNS rebinding) gets nothing.
//   - A request that a browser makes for a page of another origin is refused (403), by Sec-Fetch-Site and by Origin.
//   - The content security policy allows only this origin's scripts and styles, nothing inline, no frames, and, with
//     trusted types, no HTML made from text. Names, owners and metadata are texts of other users: the page inserts them
//     as text, and shows invisible characters and characters that change the direction by their numbers.
//   - Force (POST api/release) is refused (403) unless it is allowed. The request contains the ids of the holders that
//     the page showed, so a holder that was granted in the meantime keeps its hold.
//
// Cookies do not depend on ports. If a user visits another user's program on another port of the same host name, that
// program gets the cookie.
package ui
