from pysyncobj.config import SyncObjConf as SyncObjConf
from pysyncobj.node import Node as Node
from pysyncobj.syncobj import SyncObj as SyncObj
from pysyncobj.transport import Transport as Transport
