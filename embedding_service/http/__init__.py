"""The outside: connections, middleware, dispatch, operations. The only folder that knows HTTP."""
