import sys

import campaign

sys.exit(campaign.main())
